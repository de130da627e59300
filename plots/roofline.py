"""How near each cumulative rung comes to what the device could do at best, and its model-FLOPs utilisation."""

from typing import TYPE_CHECKING

from plots import style, text
from results import analysis
from results.schema import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(record: Record) -> "Figure | None":
    """Share of the roofline and MFU of one record; ``None`` if it knows neither."""
    rows = analysis.rows(record, analysis.CUMULATIVE)
    shares = [r.roofline_share for r in rows if r.roofline_share is not None]
    mfus = [m for r in rows for m in (r.mfu_full, r.mfu_causal) if m is not None]
    if not shares and not mfus:
        return None
    columns, notes = [], []
    if shares:
        columns.append(
            style.Column(heading="of the roofline", texts=[_share(r.roofline_share) for r in rows], width=1.15)
        )
        roof = record.roofline
        notes.append(
            f"Bar: share of the roofline, {text.tokens(roof['tokens_per_second'])} tokens/s in {roof.get('dtype', '')}."
        )
    if mfus:
        columns.append(style.Column(heading="◆ MFU full", texts=[_share(r.mfu_full) for r in rows], width=1.0))
        columns.append(style.Column(heading="◇ causal", texts=[_share(r.mfu_causal) for r in rows], width=0.9))
        peak = record.mfu_peak
        notes.append(
            f"MFU of {peak['tflops']:g} TFLOP/s {peak.get('dtype', '')} ({peak.get('source', 'source unknown')});"
            " full: 6N + 12·L·H·Q·T per token; causal: attention counted half."
        )
    fig, ax = style.chart(
        title="How near to what the device could do at best",
        subtitles=style.headings(record),
        notes=[*notes, text.provenance(record)],
        labels=[row.title for row in rows],
        columns=columns,
    )
    for y, row in enumerate(rows):
        if row.tokens_per_second is None:
            style.missing(ax, y, row)
            continue
        if row.roofline_share is not None:
            fill = style.GREY if row.is_baseline else style.BLUE
            style.bar(ax, y, 0, row.roofline_share, fill, tentative=style.tentative(row))
        for mfu, face in ((row.mfu_full, style.ORANGE), (row.mfu_causal, "white")):
            if mfu is not None:
                ax.plot(
                    mfu, y, "D", color=face, markeredgecolor=style.INK, markersize=6, markeredgewidth=1.0, clip_on=False
                )
    top = max(1.0, *shares, *mfus)
    ax.set_xlim(0, top * 1.01)
    ticks = [0, 0.25, 0.5, 0.75, 1.0]
    ax.set_xticks(ticks, [f"{t * 100:.0f} %" for t in ticks])
    if shares:
        style.limit_line(ax, 1.0, "roofline")
    return fig


def _share(value: float | None) -> str:
    return "" if value is None else text.share(value)
