"""What the ladder is worth on every device that has been measured, by the newest full record of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plots import style, text
from results import analysis
from results.analysis import Row
from results.schema import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fastest(record: Record) -> Row | None:
    """The fastest place of a record's cumulative ladder."""
    rows = [row for row in analysis.rows(record, analysis.CUMULATIVE) if row.tokens_per_second]
    return max(rows, key=lambda row: row.tokens_per_second.value, default=None)


def draw(records: Sequence[Record]) -> "Figure | None":
    """Speed-up over the fp32 baseline, one row per record, the fastest device first; ``None`` if none has one."""
    found = [(record, row) for record in records if (row := fastest(record)) and row.over_baseline]
    if not found:
        return None
    found.sort(key=lambda pair: -pair[1].tokens_per_second.value)
    fig, ax = style.chart(
        title="What the ladder is worth, device by device",
        subtitles=[
            "Fastest setting on each device's ladder over its own fp32 baseline",
            "Newest full record of each device",
        ],
        notes=[
            "Whisker: 95 % interval, paired by trial. Hollow: one trial, indicative. Dashed: the baseline.",
        ],
        labels=[record.device["name"] for record, _ in found],
        columns=[
            style.Column(heading="speed-up", texts=[text.times(row.over_baseline.ratio) for _, row in found]),
            style.Column(heading="tokens/s", texts=[text.tokens(row.tokens_per_second.value) for _, row in found]),
            style.Column(
                heading="workload, versions",
                texts=[_setting(record) for record, _ in found],
                colours=[style.GREY] * len(found),
                width=1.75,
            ),
        ],
    )
    ends = []
    for y, (_, row) in enumerate(found):
        effect = row.over_baseline
        style.bar(ax, y, 0, effect.ratio, style.BLUE, tentative=style.tentative(row))
        if effect.low is not None and effect.high is not None:
            style.whisker(ax, y, effect.low, effect.high)
        ends.append(max(effect.ratio, effect.high or 0))
    top = max(ends) * 1.02
    ax.set_xlim(0, top)
    ticks = style.round_ticks(top)
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.axvline(1.0, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
    return fig


def _setting(record: Record) -> str:
    w, e = record.workload, record.environment
    versions = [f"{word} {e[key]}" for key, word in (("torch", "torch"), ("cuda", "CUDA")) if e.get(key)]
    return f"{w.get('model', 'model')}, {w['micro_batch']} × {w['seq_len']} tokens\n{', '.join(versions)}"
