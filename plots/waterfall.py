"""What each optimization adds to the ones before it. Factors multiply, so lengths are logarithms and add up."""

from typing import TYPE_CHECKING

from plots import style, text
from results import analysis
from results.schema import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(record: Record) -> "Figure | None":
    """The cumulative ladder as a waterfall; ``None`` if no rung was measured over the baseline."""
    rows = [row for row in analysis.rows(record, analysis.CUMULATIVE) if not row.is_baseline]
    measured = [row for row in rows if row.over_baseline]
    if not measured:
        return None
    total = measured[-1]
    fig, ax = style.chart(
        title="What each optimization adds to the ones before it",
        subtitles=style.headings(record),
        notes=[
            "Logarithmic: equal factors have equal lengths. Whisker: 95 % interval of the factor over the rung before.",
            "Blue is faster, hatched slower, pale within the noise. Hollow: one trial, indicative."
            if style.tentative(total)
            else "Blue is faster, hatched slower, pale within the noise.",
            text.provenance(record),
        ],
        labels=[*(row.title for row in rows), "together"],
        columns=[
            style.Column(
                heading="over the rung before",
                texts=[*map(text.over_previous, rows), text.times(total.over_baseline.ratio)],
                colours=[*map(style.word_colour, rows), style.INK],
                width=1.5,
            ),
            style.Column(
                heading="95 % interval", texts=[*map(_interval, rows), text.half_width(total.over_baseline)], width=1.1
            ),
        ],
    )
    reached, edges = 1.0, [1.0]
    for y, row in enumerate(rows):
        if row.over_baseline is None:
            style.missing(ax, y, row, start=1.0)
            continue
        end, effect = row.over_baseline.ratio, row.over_previous
        style.bar(ax, y, reached, end, style.colour(row), tentative=style.tentative(row))
        ax.plot([end, end], [y - 0.31, y + 1.31], color=style.PALE, linewidth=0.8, zorder=0.5)
        if effect and effect.low and effect.high:
            ends = (end * effect.low / effect.ratio, end * effect.high / effect.ratio)
            style.whisker(ax, y, *ends)
            edges += ends
        edges.append(end)
        reached = end
    style.bar(ax, len(rows), 1.0, reached, style.GREY, tentative=style.tentative(total))
    style.factor_axis(ax, min(edges), max(edges))
    return fig


def _interval(row: analysis.Row) -> str:
    return text.half_width(row.over_previous)
