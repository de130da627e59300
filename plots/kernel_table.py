"""The terminal's table of a kernel: a row for each problem, a column for each way to compute it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from plots import text
from plots.kernels import cell, reached
from plots.table import COLOURS, INDICATIVE, Notes, caption_of, empty_table, natural_width, plain_cells
from results.kernels import OURS, Problem, left_out, problems
from results.schema import Record
from results.stats import NO_INTERVAL

if TYPE_CHECKING:
    from rich.table import Table

DISPENSABLE = ("written out", "ours reaches", "memory")  # what a narrow terminal goes without, first to last


def kernel_table(record: Record, kernel: str, width: int | None = None) -> "Table":
    """One kernel of a record, footnotes in its caption.

    Args:
        record: what was measured.
        kernel: a key of ``record.derivations``.
        width: of the terminal, in characters; what does not fit is left out, and said to be. ``None`` shows everything.
    """
    found = problems(record, kernel)
    ways = {e.title: e.name for p in found for e in p.entries}
    labels = [f"{p.direction}, {p.size}" for p in found]
    dropped: list[str] = []
    while True:  # with as few columns as it takes to fit; notes are those of the columns that stay
        notes = Notes()
        headings = [heading for heading in (*ways, *OF_OURS) if heading not in dropped]
        columns = {h: [OF_OURS[h](p) if h in OF_OURS else _cell(p, ways[h], notes) for p in found] for h in headings}
        dispensable = next((heading for heading in DISPENSABLE if heading in columns), None)
        if width is None or dispensable is None or natural_width(labels, columns) <= width:
            break
        dropped.append(dispensable)
    title = found[0].title if found else kernel
    out = empty_table(f"{title} · {record.device['name']} · {text.workload(record)}", [kernel, *columns])
    for i, (problem, label) in enumerate(zip(found, labels, strict=True)):
        compiled = problem.entry("compiled")
        colour = COLOURS.get((compiled and compiled.verdict) or "", "")
        out.add_row(*plain_cells([label, *(cells[i] for cells in columns.values())], colour))
    general = [
        f"{text.versions(record)} · {text.provenance(record)}",
        "(1.32×): ours is so many times faster; (=): within its interval or the noise. Colour: over torch.compile.",
        "Bound: bytes at least at the measured copy bandwidth, or products at their measured rate, the longer of both.",
    ]
    if any(e.verdict == NO_INTERVAL for p in found for e in p.entries):
        general.append(INDICATIVE)
    general += [f"Left out: {line}" for line in left_out(record, kernel)]
    if dropped:
        general.append(f"Left out, for {width} characters are too few: {', '.join(dropped)}.")
    out.caption = caption_of([*general, *notes.lines()])
    return out


def _cell(problem: Problem, name: str, notes: Notes) -> str:
    """As in the chart, with a footnote for what went wrong or is flagged."""
    entry = problem.entry(name)
    if entry is None:
        return cell(None)
    why = [f"{entry.row.status}: {entry.row.reason}"] if entry.row.failed and entry.row.reason else []
    words = f"{cell(entry)} {text.half_width(entry.row.step_ms) if name == OURS else ''}".strip()
    return words + "".join(f" [{notes.number(note)}]" for note in why + entry.row.flags)


def _share(problem: Problem) -> str:
    ours = problem.ours
    return text.share(ours.row.roofline_share) if ours and ours.row.roofline_share is not None else ""


def _memory(problem: Problem) -> str:
    """Of ours, and of the compiled specification in brackets."""
    found = {name: e.row.peak_memory_bytes for name in (OURS, "compiled") if (e := problem.entry(name))}
    ours, compiled = (text.gib(found[name]) if found.get(name) else "" for name in (OURS, "compiled"))
    return f"{ours} ({compiled})" if ours and compiled else ours


OF_OURS: dict[str, Callable[[Problem], str]] = {
    "ours reaches": lambda problem: reached(problem, problem.ours), "of the bound": _share, "memory": _memory
}  # fmt: skip
