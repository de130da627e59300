"""Where one step's time goes: each part's measured time against its bound, the worst gap first."""

import textwrap
from typing import TYPE_CHECKING

from plots import profile_text, style, text
from results.gaps import Part, breakdown
from results.profiles import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_RUNGS = 135  # characters


def draw(profile: Profile) -> "Figure":
    """One profile as bars: up to the bound, and beyond it."""
    found = breakdown(profile)
    parts = [part for part in found.parts if part.ms or part.bound_ms]
    limits = profile_text.limits(profile)
    if profile.roofline is not None:
        limits += " Blue up to the bound, hatched beyond it, hollow where it is not reached."
    fig, ax = style.chart(
        title="Where the time of one step goes",
        subtitles=[
            f"{profile.device['name']} · {text.workload(profile)}",
            textwrap.shorten(profile_text.rungs(profile), LONGEST_RUNGS, placeholder=" …"),
            text.versions(profile),
        ],
        notes=[
            limits,
            profile_text.accounts(profile, found),
            profile_text.fused(profile),
            profile_text.provenance(profile),
        ],
        labels=[part.name for part in parts],
        columns=[
            style.Column(heading="measured", texts=[text.milliseconds(part.ms) for part in parts]),
            style.Column(heading="bound", texts=[profile_text.bound(part) for part in parts]),
            style.Column(
                heading="more",
                texts=[profile_text.gap(part) for part in parts],
                colours=[style.VERMILLION if (part.gap_ms or 0.0) > 0 else style.GREY for part in parts],
            ),
            style.Column(heading="of the step", texts=[text.share(p.ms / found.total_ms) for p in parts], width=1.0),
        ],
    )
    for y, part in enumerate(parts):
        _bar(ax, y, part)
    top = max(max(part.ms, part.bound_ms or 0.0) for part in parts)
    ax.set_xlim(0, top * 1.02)
    ticks = style.round_ticks(top * 1.02)
    ax.set_xticks(ticks, [f"{tick:,g} ms" for tick in ticks])
    return fig


def _bar(ax: "Axes", y: int, part: Part) -> None:
    least = part.ms if part.bound_ms is None else part.bound_ms
    if part.ms < least:  # the compiler has put the work into another part's kernel, or a cache was faster than memory
        ax.barh(y, least, height=0.62, color="white", edgecolor=style.PALE, linewidth=1.2)
    style.bar(ax, y, 0, min(part.ms, least), style.BLUE)
    if part.ms > least:
        style.bar(ax, y, least, part.ms, style.VERMILLION)
