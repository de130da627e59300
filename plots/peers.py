"""Training runs of other projects beside ours, on one device."""

import textwrap
from typing import TYPE_CHECKING

from plots import style, text
from results.peers import OURS, Comparison, Row, rows
from results.stats import NO_DIFFERENCE, SLOWER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_REASON = 60  # characters
LONGEST_RUNGS = 130


def draw(comparison: Comparison) -> "Figure":
    """One comparison, ours first, the others from the fastest to the slowest."""
    found = rows(comparison)
    measured = [row for row in found if row.tokens_per_second]
    indicative = any(row.tokens_per_second.low is None for row in measured)
    whisker = "Hollow: one trial, indicative." if indicative else "Whisker: its slowest and its fastest trial."
    paired = "paired by trial, with its 95 % interval; pale where it could be chance"
    if indicative:
        paired = "one pair alone tells no difference from noise"
    speeds = [text.tokens(row.tokens_per_second.value) if row.tokens_per_second else "" for row in found]
    times = [text.milliseconds(row.step_ms.value) if row.step_ms else "" for row in found]
    ratios, colours = [faster(row) for row in found], [word_colour(row) for row in found]
    fig, ax = style.chart(
        title="A training run, ours and others'",
        subtitles=[
            f"{comparison.device['name']} · {text.workload(comparison)}",
            textwrap.shorten(f"ours: {rungs(comparison)}", LONGEST_RUNGS, placeholder=" …"),
            text.versions(comparison),
        ],
        notes=[
            f"Bar: tokens per second of a training run, by the time that each program reports of its own steps. {whisker}",
            f"Ours is so many times as fast: {paired}.",
            provenance(comparison),
        ],
        labels=[row.entrant.title for row in found],
        columns=[
            style.Column(heading="tokens/s", texts=speeds),
            style.Column(heading="per step", texts=times),
            style.Column(heading="ours is", texts=ratios, colours=colours, width=1.35),
        ],
    )
    for y, row in enumerate(found):
        speed = row.tokens_per_second
        if speed is None:
            ax.annotate(failure(row), (0, y), (6, 0), textcoords="offset points", va="center", size=8.8, style="italic",
                        color=style.VERMILLION)  # fmt: skip
            continue
        style.bar(ax, y, 0, speed.value, style.BLUE if row.name == OURS else style.GREY, tentative=speed.low is None)
        if speed.low is not None:
            style.whisker(ax, y, row.slowest, row.fastest)
    if measured:
        style.token_axis(ax, max(row.fastest for row in measured))
    return fig


def faster(row: Row) -> str:
    """1.31× ± 0.6 %: how many times faster ours is."""
    return f"{text.times(row.ours_over.ratio)} {text.half_width(row.ours_over)}".strip() if row.ours_over else ""


def word_colour(row: Row) -> str:
    if row.verdict == SLOWER:
        return style.VERMILLION
    return style.GREY if row.verdict == NO_DIFFERENCE else style.INK


def failure(row: Row, width: int = LONGEST_REASON) -> str:
    """What became of one that has no speed."""
    words = f"{row.entrant.status}: {row.entrant.reason}" if row.entrant.reason else row.entrant.status
    return words if len(words) <= width else f"{words[: width - 1]}…"


def about(row: Row) -> list[str]:
    """Of another project's program: its commit, and where its step differs from ours."""
    if row.name == OURS or not row.entrant.commit:
        return row.entrant.notes
    changed = " with changes of its own" if row.entrant.dirty else ""
    return [f"commit {row.entrant.commit[:9]}{changed}", *row.entrant.notes]


def heading(comparison: Comparison) -> str:
    """NVIDIA H100 · gpt2 · micro-batch 64 × 1024 tokens · vocabulary 50,257 · ours: bf16 + compile."""
    return f"{comparison.device['name']} · {text.workload(comparison)} · ours: {rungs(comparison)}"


def rungs(comparison: Comparison) -> str:
    """bf16 + compile; ours."""
    return " + ".join(comparison.rungs) or "no rungs"


def provenance(comparison: Comparison) -> str:
    """Commit, date, how much was timed; whether it was cut short."""
    commit, harness = comparison.environment.get("commit"), comparison.harness
    count = max((len(entrant.runs) for entrant in comparison.entrants.values()), default=0)
    changed = " with uncommitted changes" if comparison.environment.get("dirty") else ""
    parts = [
        f"commit {commit[:9]}{changed}" if commit else "",
        comparison.created_utc[:10],
        f"{count} trial{'' if count == 1 else 's'} of {harness.get('num_steps', 'some')} steps",
        "partial: cut short" if comparison.status != "complete" else "",
    ]
    return " · ".join(part for part in parts if part)
