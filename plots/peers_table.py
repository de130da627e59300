"""The terminal's table of a comparison with other projects."""

from typing import TYPE_CHECKING

from plots import text
from plots.peers import about, failure, faster, heading, provenance
from plots.table import COLOURS, Notes, caption_of, empty_table, plain_cells
from results.peers import OURS, Comparison, Row, rows
from results.stats import NO_DIFFERENCE, NO_INTERVAL

if TYPE_CHECKING:
    from rich.table import Table

LONGEST_REASON = 500  # characters
HEADINGS = ["program", "tokens/s", "per step", "from outside", "ours is", "first step", "trials"]


def peers_table(comparison: Comparison) -> "Table":
    """One comparison, ours first, footnotes in its caption."""
    found, notes = rows(comparison), Notes()
    out = empty_table(f"Training runs · {heading(comparison)}", HEADINGS)
    for row in found:
        remarks = [*remarks_of(row), *([failure(row, LONGEST_REASON)] if row.step_ms is None else [])]
        label = row.entrant.title + "".join(f" [{notes.number(words)}]" for words in remarks)
        colour = COLOURS.get(row.verdict or "", "") if row.step_ms else "dark_orange"
        out.add_row(*plain_cells([label, *cells(row)], colour))
    general = [
        f"{text.versions(comparison)} · {provenance(comparison)}",
        "Per step: the median that each program reports of its own steps, over trials.",
        "From outside: how much longer the same steps took as they were seen to end.",
    ]
    if any(row.verdict == NO_INTERVAL for row in found):
        general.append("Indicative: one trial tells no difference from noise; take more for intervals.")
    out.caption = caption_of([*general, *notes.lines()])
    return out


def cells(row: Row) -> list[str]:
    """Everything but the name."""
    if row.step_ms is None or row.tokens_per_second is None:
        return [row.entrant.status, "", "", "", "", ""]
    first = min(run.first_step_ms for run in row.entrant.runs)
    return [
        text.tokens(row.tokens_per_second.value),
        text.milliseconds(row.step_ms.value),
        text.change(row.wall_over_step),
        "" if row.name == OURS else f"{faster(row)} (=)" if row.verdict == NO_DIFFERENCE else faster(row),
        text.seconds(first),
        str(len(row.entrant.runs)),
    ]


def remarks_of(row: Row) -> list[str]:
    """Which version it is, where its step differs from ours, and what was noticed while it ran."""
    flags = dict.fromkeys(flag for run in row.entrant.runs for flag in run.flags)
    unsettled = ["warm-up did not settle"] if any(not run.warmup_settled for run in row.entrant.runs) else []
    return [*filter(None, ["; ".join(about(row))]), *flags, *unsettled]
