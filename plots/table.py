"""The terminal's table of a record, which says what the charts say, and that of two records set side by side."""

from typing import TYPE_CHECKING

from plots import text
from results import analysis, stats
from results.analysis import Row
from results.schema import Record

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    analysis.CUMULATIVE: "One optimization at a time",
    analysis.SINGLE: "Each optimization alone over the baseline",
    analysis.LEAVE_ONE_OUT: "All optimizations but one",
    analysis.CHOICES: "All optimizations, with another choice in one place",
    analysis.SCALING: "Data-parallel scaling",
    analysis.BATCH: "Several sequences at once",
}
BEFORE = {analysis.LEAVE_ONE_OUT: "over all", analysis.CHOICES: "over all", analysis.BATCH: "over one"}
COLOURS = {stats.FASTER: "blue", stats.SLOWER: "dark_orange", stats.NO_DIFFERENCE: "dim"}
INDICATIVE = "Indicative: one trial tells no difference from noise; run without --quick for intervals."


# What a narrow terminal goes without, first to last.
DISPENSABLE = ("drift", "other tokens", "error", "compile", "roofline", "of the bound", "MFU", "memory", "first token")
# What a column needs said.
EXPLAINED = {
    "drift": "drift: largest difference of the loss from true fp32 over the first steps, in nats.",
    "error": "error: largest difference of the logits from fp32 without a cache, relative to their size.",
    "other tokens": "other tokens: share of tokens that fp32 without a cache would have drawn otherwise.",
    "of the bound": "bound: bytes of weights, keys and values that a token needs, over the measured copy bandwidth; caches may pass it.",
}


def ladder_table(record: Record, derivation: str = analysis.CUMULATIVE, width: int | None = None) -> "Table":
    """One derived ladder as a table for the terminal, footnotes in its caption.

    Args:
        record: what was measured.
        derivation: a key of ``record.derivations``.
        width: of the terminal, in characters; what does not fit is left out, and said to be. ``None`` shows everything.

    Raises:
        ValueError: the record lacks this derivation.
    """
    if derivation not in record.derivations:
        raise ValueError(f"derivation is {derivation!r}; this record has {', '.join(record.derivations) or 'none'}")
    rows = analysis.rows(record, derivation)
    notes = Notes()
    if derivation == analysis.SCALING:
        columns = _scaling_columns(record)
    else:
        before = BEFORE.get(derivation, "over the rung before")
        bound = "of the bound" if record.suite == analysis.SAMPLING else "roofline"
        checks = [{check.what: check.value for check in row.checks} for row in rows]
        columns = {
            "tokens/s": [_estimate(row.tokens_per_second) for row in rows],
            "× base": [text.times(1) if row.is_baseline else _ratio(row.over_baseline) for row in rows],
            before: [_claim(row) for row in rows],
            "first token": [text.milliseconds(row.first_token_ms.value) if row.first_token_ms else "" for row in rows],
            "MFU": [text.share(row.mfu_full) if row.mfu_full is not None else "" for row in rows],
            bound: [text.share(row.roofline_share) if row.roofline_share is not None else "" for row in rows],
            "memory": [text.gib(row.peak_memory_bytes) if row.peak_memory_bytes else "" for row in rows],
            "compile": [text.seconds(row.compile_ms) if row.compile_ms is not None else "" for row in rows],
            "drift": [f"{row.loss_drift:.1g}" if row.loss_drift is not None else "" for row in rows],
            "error": [f"{found['logits']:.1g}" if "logits" in found else "" for found in checks],
            "other tokens": [text.share(found["tokens"]) if "tokens" in found else "" for found in checks],
        }
        if derivation == analysis.SINGLE:
            del columns[before]  # the rung before is the baseline
            columns["× base"] = [text.times(1) if row.is_baseline else _claim(row) for row in rows]
    labels = [row.title + "".join(f" [{notes.number(note)}]" for note in _row_notes(row)) for row in rows]
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    columns = columns or {"tokens/s": [""] * len(rows)}
    left_out = []
    for heading in DISPENSABLE:
        if width is not None and heading in columns and natural_width(labels, columns) > width:
            left_out.append(heading)
            del columns[heading]

    title = f"{TITLES.get(derivation, derivation)} · {record.device['name']} · {text.workload(record)}"
    out = empty_table(title, ["rung", *columns])
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        cells = [column[i] for column in columns.values()]
        if row.tokens_per_second is None:
            cells[0] = row.status
        out.add_row(*plain_cells([label, *cells], _style(row)))
    claims = {row.over_previous_verdict for row in rows} | {row.over_baseline_verdict for row in rows}
    general = [f"{text.versions(record)} · {text.provenance(record)}", _floor(record)]
    if stats.NO_INTERVAL in claims:
        general.append(INDICATIVE)
    general += [words for heading, words in EXPLAINED.items() if heading in columns]
    if "MFU" in columns and record.mfu_peak:
        general.append(
            "MFU: 6N + 12·L·H·Q·T per token, "
            f"of {record.mfu_peak['tflops']:g} TFLOP/s {record.mfu_peak.get('dtype', '')}."
        )
    if left_out:
        general.append(f"Left out, for {width} characters are too few: {', '.join(left_out)}.")
    out.caption = caption_of([*general, *notes.lines()])
    return out


def compare_table(a: Record, b: Record) -> "Table":
    """Two records setting by setting; what else differs between them stands below."""
    found = analysis.compare(a, b)
    differ = analysis.differences(a, b)
    notes = Notes()
    out = empty_table(
        "The second record over the first: did anything move?",
        ["setting", "first", "second", "second / first", "verdict"],
    )
    for c in found:
        label = c.label + (f" [{notes.number(c.note)}]" if c.note else "")
        effect = f"{c.effect.ratio:.3f}× {text.half_width(c.effect)}".strip() if c.effect else ""
        cells = [label, _estimate(c.a), _estimate(c.b), effect, c.verdict or ""]
        out.add_row(*plain_cells(cells, COLOURS.get(c.verdict or "", "")))
    general = [
        f"{which}: {r.device['name']} · {text.versions(r)} · {text.provenance(r)}"
        for which, r in (("first", a), ("second", b))
    ]
    unit = "calls/s" if analysis.KERNELS in (a.suite, b.suite) else "tokens/s per process"
    general.append(f"{unit} with 95 % intervals; the sessions share no trial, so Welch's interval compares them.")
    general += [f"differs: {line}" for line in differ]
    out.caption = caption_of([*general, *notes.lines()])
    return out


class Notes:
    """Footnotes, numbered as they first come up; equal ones share a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, note: str) -> int:
        return self.numbers.setdefault(note, len(self.numbers) + 1)

    def lines(self) -> list[str]:
        return [f"[{number}] {note}" for note, number in self.numbers.items()]


def _scaling_columns(record: Record) -> dict[str, list[str]]:
    found = analysis.scaling(record)
    return {
        "tokens/s": [_estimate(s.total) for s in found],
        "per process": [_estimate(s.per_process) for s in found],
        "efficiency": [
            f"{text.share(s.efficiency.ratio)} {text.half_width(s.efficiency) if s.processes > 1 else ''}".strip()
            if s.efficiency
            else ""
            for s in found
        ],
    }


def _row_notes(row: Row) -> list[str]:
    why = [f"{row.status}: {row.reason}" if row.reason else row.status] if row.tokens_per_second is None else []
    return why + row.flags


def _claim(row: Row) -> str:
    """The verdict and the effect it is about."""
    effect, verdict = row.over_previous, row.over_previous_verdict
    if effect is None or verdict is None or verdict == stats.NO_DIFFERENCE:
        return verdict or text.over_previous(row)
    word = verdict.split(",")[0]
    return f"{word} {text.change(effect.ratio)} {text.half_width(effect)}".strip()


def _style(row: Row) -> str:
    if row.tokens_per_second is None:
        return "dark_orange" if row.failed else "dim"
    return COLOURS.get(row.over_previous_verdict or "", "")


def _estimate(e: stats.Estimate | None) -> str:
    return f"{text.tokens(e.value)} {text.half_width(e)}".strip() if e else ""


def _ratio(e: stats.Effect | None) -> str:
    return text.times(e.ratio) if e else ""


def _floor(record: Record) -> str:
    if analysis.noise_floor(record) is None:
        return "The baseline was not measured twice, so no difference can be claimed."
    return "No difference: within its 95 % interval, or within the noise floor: how far the baseline is from itself."


def natural_width(labels: list[str], columns: dict[str, list[str]]) -> int:
    return max(map(len, labels)) + sum(3 + max(map(len, [heading, *cells])) for heading, cells in columns.items()) + 2


def empty_table(title: str, headings: list[str]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(title=Text(title), title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        out.add_column(heading, justify="right" if i else "left", vertical="top")
    return out


def plain_cells(cells: list[str], style: str) -> list[object]:
    """Cells as plain text: a reason from a record may hold brackets, which rich would take for markup."""
    from rich.text import Text

    return [Text(cell, style=style) for cell in cells]


def caption_of(lines: list[str]) -> object:
    from rich.text import Text

    return Text("\n".join(lines), style="not italic dim")
