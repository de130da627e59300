"""Peak memory along the cumulative ladder: what the tensors took, and what the allocator held for them."""

from typing import TYPE_CHECKING

from plots import style, text
from results import analysis
from results.schema import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FITS = 2.0  # the device's own memory is drawn if at most this many times the longest bar


def draw(record: Record) -> "Figure | None":
    """Peak memory per cumulative rung of one record; ``None`` if nothing was measured."""
    rows = analysis.rows(record, analysis.CUMULATIVE)
    peaks = [max(r.peak_memory_bytes, r.peak_reserved_bytes or 0) for r in rows if r.peak_memory_bytes]
    if not peaks:
        return None
    first = next(r.peak_memory_bytes for r in rows if r.peak_memory_bytes)
    reserves = any(r.peak_reserved_bytes for r in rows)
    device = record.device.get("memory_bytes") or 0
    shown = device if device <= FITS * max(peaks) else 0
    kind = (
        "Bar: allocated by tensors. Outline: reserved by the allocator."
        if reserves
        else "Bar: resident set of the process."
    )
    if device and not shown:
        kind += f" The device has {text.gib(device)}."
    columns = [
        style.Column(
            heading="allocated" if reserves else "resident",
            texts=[text.gib(r.peak_memory_bytes) if r.peak_memory_bytes else "" for r in rows],
            width=1.0,
        ),
        style.Column(
            heading="of the first",
            texts=[text.share(r.peak_memory_bytes / first) if r.peak_memory_bytes else "" for r in rows],
            width=1.05,
        ),
    ]
    if reserves:
        reserved = [text.gib(r.peak_reserved_bytes) if r.peak_reserved_bytes else "" for r in rows]
        columns.insert(1, style.Column(heading="reserved", texts=reserved, colours=[style.GREY] * len(rows)))
    fig, ax = style.chart(
        title="Peak memory, one optimization at a time",
        subtitles=style.headings(record),
        notes=[f"{kind} The highest of all trials.", text.provenance(record)],
        labels=[row.title for row in rows],
        columns=columns,
    )
    for y, row in enumerate(rows):
        if row.peak_memory_bytes is None:
            style.missing(ax, y, row)
            continue
        if row.peak_reserved_bytes:
            style.bar(ax, y, 0, row.peak_reserved_bytes / text.GIB, style.PALE, tentative=True)
        style.bar(ax, y, 0, row.peak_memory_bytes / text.GIB, style.GREY if row.is_baseline else style.GREEN)
    top = max(max(peaks), shown) / text.GIB * 1.02
    ax.set_xlim(0, top)
    ticks = style.round_ticks(top)
    ax.set_xticks(ticks, [f"{t:g} GiB" if t else "0" for t in ticks])
    if shown:
        style.limit_line(ax, shown / text.GIB, f"device memory {text.gib(shown)}")
    return fig
