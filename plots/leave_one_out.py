"""What changes when one optimization of all is left out, or gives its place to another: its worth where it is used,
whatever the ladder's order."""

from typing import TYPE_CHECKING

from plots import style, text
from results import analysis
from results.schema import Record
from results.stats import NO_DIFFERENCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(record: Record) -> "Figure | None":
    """Leave-one-out of one record, the greatest loss first; ``None`` if none was measured."""
    return _over_all(
        record,
        analysis.LEAVE_ONE_OUT,
        title="What is lost without each optimization",
        bar="speed without it",
        colours="Blue helps, hatched hurts, pale is within the noise.",
    )


def draw_choices(record: Record) -> "Figure | None":
    """Every other choice that one record measured, the worst first; ``None`` if none was."""
    return _over_all(
        record,
        analysis.CHOICES,
        title="What another choice in one place would change",
        bar="speed with it, in the place of the ladder's choice,",
        colours="Blue: the ladder's own choice is faster. Hatched: this one is. Pale: within the noise.",
    )


def _over_all(record: Record, derivation: str, *, title: str, bar: str, colours: str) -> "Figure | None":
    """Places of a derivation by their speed over everything.

    Args:
        record, derivation: whose rows.
        title: of the chart.
        bar: what a bar is, over the speed with all on.
        colours: what they say.
    """
    rows = [row for row in analysis.rows(record, derivation) if row.label != "all"]
    if not any(row.over_previous for row in rows):
        return None
    rows.sort(key=lambda row: row.over_previous.ratio if row.over_previous else float("inf"))
    reading = f"Bar: {bar} over speed with all on, logarithmic. Whisker: 95 % interval, paired by trial."
    if any(map(style.tentative, rows)):
        reading += " Hollow: one trial, indicative."
    fig, ax = style.chart(
        title=title,
        subtitles=style.headings(record),
        notes=[reading, colours, text.provenance(record)],
        labels=[row.title for row in rows],
        columns=[
            style.Column(
                heading="speed",
                texts=[text.over_previous(row) for row in rows],
                colours=[_word_colour(row) for row in rows],
                width=1.25,
            ),
            style.Column(
                heading="95 % interval", texts=[text.half_width(row.over_previous) for row in rows], width=1.15
            ),
        ],
    )
    leftmost = min(row.over_previous.ratio for row in rows if row.over_previous)
    ends = [1.0]
    for y, row in enumerate(rows):
        if row.over_previous is None:
            style.missing(ax, y, row, start=min(leftmost, 1.0))
            continue
        effect = row.over_previous
        style.bar(ax, y, 1.0, effect.ratio, _colour(row), tentative=style.tentative(row))
        if effect.low is not None and effect.high is not None:
            style.whisker(ax, y, effect.low, effect.high)
            ends += [effect.low, effect.high]
        ends.append(effect.ratio)
    style.factor_axis(ax, min(ends), max(ends))
    return fig


def _colour(row: analysis.Row) -> str:
    if row.over_previous_verdict == NO_DIFFERENCE:
        return style.PALE
    return style.BLUE if row.over_previous.ratio < 1.0 else style.VERMILLION


def _word_colour(row: analysis.Row) -> str:
    if row.over_previous is None or row.over_previous_verdict == NO_DIFFERENCE:
        return style.GREY
    return _colour(row)
