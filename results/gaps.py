"""Where a step's time goes beyond what the device needs: each part of it beside its bound.

A kernel counts with its share of the clock, as it was traced. Idle is what the step took without the profiler beyond
that, but no more than was idle in the trace, where a slower host leaves the device idle longer if anything. So the
parts add up to the step, unless kernels were faster or slower under the profiler; then `Breakdown.off_ms` says by how
much they do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from results import stats
from results.parts import BOUNDED, IDLE, Sizes, parts_of
from results.profiles import Kernel, Profile


@dataclass(frozen=True, kw_only=True)
class Item:
    """A kernel's share of the clock that goes to one part."""

    kernel: Kernel
    ms: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the step.

    Args:
        name: of `results.parts`.
        ms: measured, per step.
        bound_ms: the least it could take; 0 for what need not be; None where the peaks are not known.
        items: its kernels, the longest first.
    """

    name: str
    ms: float
    bound_ms: float | None
    items: list[Item]

    @property
    def gap_ms(self) -> float | None:
        return None if self.bound_ms is None else self.ms - self.bound_ms

    @property
    def gain_ms(self) -> float:
        """What could be won at most: the gap, or all of it where no bound is known."""
        return self.ms if self.gap_ms is None else self.gap_ms

    @property
    def over(self) -> float | None:
        """How many times its bound."""
        return self.ms / self.bound_ms if self.bound_ms else None


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """A step taken apart.

    Args:
        parts: the worst gap first; without bounds, the longest.
        step_ms: the step without the profiler, median of its blocks.
        bound_ms: all bounds added up; None where the peaks are not known.
        total_ms: all parts added up.
    """

    parts: list[Part]
    step_ms: float
    bound_ms: float | None
    total_ms: float

    @property
    def off_ms(self) -> float:
        """By how much the parts add up to more than the step; negative for less."""
        return self.total_ms - self.step_ms


def breakdown(profile: Profile) -> Breakdown:
    """Takes a profile's step apart."""
    sizes, step_ms = Sizes.of(profile), stats.median(profile.trial.device_ms)
    bounds = (profile.roofline or {}).get("components_ms")
    items: dict[str, list[Item]] = {}
    for kernel in profile.kernels:
        for name, share in shares(parts_of(kernel, sizes), bounds).items():
            items.setdefault(name, []).append(Item(kernel=kernel, ms=kernel.share_ms * share))
    measured = {name: sum(item.ms for item in found) for name, found in items.items()}
    measured[IDLE] = max(0.0, min(step_ms, profile.traced_step_ms) - profile.busy_ms)
    names = [*measured, *(name for name in BOUNDED if bounds and name not in measured)]
    parts = [
        Part(
            name=name,
            ms=measured.get(name, 0.0),
            bound_ms=None if bounds is None else bounds.get(name, 0.0),
            items=sorted(items.get(name, []), key=lambda item: -item.ms),
        )
        for name in names
    ]
    return Breakdown(
        parts=sorted(parts, key=lambda part: (-part.gain_ms, part.name)),
        step_ms=step_ms,
        bound_ms=None if bounds is None else sum(bounds.values()),
        total_ms=sum(measured.values()),
    )


def shares(parts: Sequence[str], bounds: Mapping[str, float] | None) -> dict[str, float]:
    """How a kernel's time is divided among the parts it was fused from: in proportion to their bounds, so that all come
    out equally far from theirs; equally where the bounds are not known."""
    weights = {name: (bounds or {}).get(name, 0.0) for name in parts}
    total = sum(weights.values())
    return {name: weight / total if total else 1 / len(weights) for name, weight in weights.items()}
