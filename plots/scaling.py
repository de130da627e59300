"""How training speed grows with the number of processes, against the straight line that nobody passes."""

from typing import TYPE_CHECKING

from plots import style, text
from results import analysis
from results.schema import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(record: Record) -> "Figure | None":
    """The scaling of one record; ``None`` if it measured none."""
    found = analysis.scaling(record)
    if not any(s.total for s in found):
        return None
    rows = analysis.rows(record, analysis.SCALING)
    alone = next((s.per_process.value for s in found if s.processes == 1 and s.per_process), None)
    fig, ax = style.chart(
        title="Data-parallel scaling",
        subtitles=style.headings(record),
        notes=[
            "Bar: tokens/s of all processes. Mark: the ideal, as many times one process alone."
            " Efficiency: speed of a process over its speed alone.",
            text.provenance(record),
        ],
        labels=[f"{s.processes} process{'es' if s.processes > 1 else ''}" for s in found],
        columns=[
            style.Column(heading="tokens/s", texts=[text.tokens(s.total.value) if s.total else "" for s in found]),
            style.Column(
                heading="per process",
                texts=[text.tokens(s.per_process.value) if s.per_process else "" for s in found],
                colours=[style.GREY] * len(found),
            ),
            style.Column(
                heading="efficiency", texts=[text.share(s.efficiency.ratio) if s.efficiency else "" for s in found]
            ),
            style.Column(
                heading="95 % interval",
                texts=[text.half_width(s.efficiency) if s.processes > 1 else "" for s in found],
                width=1.1,
            ),
        ],
    )
    ends = []
    for y, (row, s) in enumerate(zip(rows, found, strict=True)):
        if s.total is None:
            style.missing(ax, y, row)
        else:
            style.bar(
                ax, y, 0, s.total.value, style.GREY if s.processes == 1 else style.BLUE, tentative=s.total.low is None
            )
            ends.append(s.total.value)
        if alone:
            ax.plot(
                [alone * s.processes] * 2, [y - 0.4, y + 0.4], color=style.INK, linewidth=1.6, solid_capstyle="butt"
            )
            ends.append(alone * s.processes)
    if alone:
        ax.annotate(
            "ideal", (alone * found[0].processes, -0.4), (0, 2), textcoords="offset points", size=8.5, ha="center"
        )
        ax.plot([alone * s.processes for s in found], range(len(found)), color=style.INK, linewidth=0.8,
                linestyle=(0, (2, 3)), zorder=0.6)  # fmt: skip
    top = max(ends) * 1.03
    ax.set_xlim(0, top)
    ticks = style.round_ticks(top)
    ax.set_xticks(ticks, [text.round_tokens(t) for t in ticks])
    return fig
