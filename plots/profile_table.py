"""The terminal's tables of a profile: parts against their bounds, then the kernels they are made of."""

from typing import TYPE_CHECKING

from plots import profile_text, text
from plots.table import caption_of, empty_table, plain_cells
from results.gaps import breakdown
from results.profiles import Profile

if TYPE_CHECKING:
    from rich.table import Table

SMALLEST = 0.001  # of the step; kernels below it are counted, and not shown


def parts_table(profile: Profile) -> "Table":
    """Each part of the step: measured, bound, gap; the worst gap first."""
    found = breakdown(profile)
    headings = ["part", "measured", "bound", "more", "over bound", "of the step", "calls"]
    out = empty_table(f"One step · {profile_text.heading(profile)}", headings)
    for part in found.parts:
        calls = f"{sum(item.kernel.calls for item in part.items):,.0f}" if part.items else ""
        out.add_row(*plain_cells([*profile_text.row(part, found), calls], "" if part.ms else "dim"))
    under = [
        f"{text.versions(profile)} · {profile_text.provenance(profile)}",
        profile_text.limits(profile),
        profile_text.accounts(profile, found),
        profile_text.fused(profile),
    ]
    out.caption = caption_of([*under, *profile.flags, *profile.trial.flags])
    return out


def kernels_table(profile: Profile, count: int | None = None) -> "Table":
    """The kernels, the longest first.

    Args:
        profile: what was traced.
        count: at most so many; None shows all but the smallest.
    """
    total_ms, every = breakdown(profile).total_ms, profile_text.lines(profile)
    shown = [line for line in every if line.share_ms >= SMALLEST * total_ms][:count]
    title = "Operators, each without those it calls" if profile.device["kind"] == "cpu" else "Kernels"
    out = empty_table(title, ["name", "part", "phase", "calls", "ms", "of the step"])
    for column in out.columns[:3]:
        column.justify, column.overflow = "left", "fold"
    for line in shown:
        numbers = [f"{line.calls:,.5g}", f"{line.ms:,.3f}", text.share(line.share_ms / total_ms)]
        out.add_row(*plain_cells([line.name, line.part, line.phase, *numbers], ""))
    if rest := every[len(shown) :]:
        ms = sum(line.share_ms for line in rest)
        out.caption = caption_of(
            [f"{len(rest)} more take {text.milliseconds(ms)}, {text.share(ms / total_ms)} of the step."]
        )
    return out
