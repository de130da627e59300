"""From single stretches of work to what each kernel takes in a step.

What else runs on a machine now and then delays a kernel a hundred times over, so the quarter of the steps that were
slowest does not count, nor the quarter that was fastest.
"""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from results.profiles import Kernel


class Key(NamedTuple):
    """What calls that count as one kernel have in common; see `results.profiles.Kernel`."""

    name: str
    kind: str
    phase: str
    launched_by: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    neighbours: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Some work for part of the time, microseconds; several spans can make one call."""

    start: float
    end: float
    call: Any  # the same object for all spans of a call
    key: Key


@dataclass(frozen=True, kw_only=True)
class Traced:
    """Per step, the mean over those that count, milliseconds."""

    num_counted: int
    step_ms: float
    busy_ms: float
    kernels: list[Kernel]
    flags: list[str]


def middle_half(windows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the longest and the shortest quarter; in order of time."""
    by_length, quarter = sorted(windows, key=lambda window: window[1] - window[0]), len(windows) // 4
    return sorted(by_length[quarter : len(windows) - quarter])


def add_up(spans: Iterable[Span], windows: Sequence[tuple[float, float]], flags: list[str]) -> Traced:
    """Kernels launched in the same way, together; where several run at once, the time is shared out equally.

    Args:
        spans: all work.
        windows: (start, end) of the steps that count.
        flags: handed on.
    """
    begins, inside = [begin for begin, _ in windows], []
    for span in spans:
        i = bisect.bisect_right(begins, span.start) - 1
        if i >= 0 and span.start < windows[i][1]:
            inside.append((span, (span.start, min(span.end, windows[i][1]))))
    shares, busy = share_out([clipped for _, clipped in inside])
    calls, total, shared = defaultdict(set), defaultdict(float), defaultdict(float)
    for (span, (start, end)), share in zip(inside, shares, strict=True):
        calls[span.key].add(id(span.call))
        total[span.key] += end - start
        shared[span.key] += share
    num = len(windows)
    kernels = [
        Kernel(
            name=key.name,
            kind=key.kind,
            phase=key.phase,
            launched_by=list(key.launched_by),
            shapes=[list(shape) for shape in key.shapes],
            neighbours=list(key.neighbours),
            calls=len(calls[key]) / num,
            ms=total[key] / num / 1e3,
            share_ms=shared[key] / num / 1e3,
        )
        for key in total
    ]
    return Traced(
        num_counted=num,
        step_ms=sum(end - begin for begin, end in windows) / num / 1e3,
        busy_ms=busy / num / 1e3,
        kernels=sorted(kernels, key=lambda kernel: (-kernel.share_ms, kernel.name)),
        flags=flags,
    )


def share_out(spans: Sequence[tuple[float, float]]) -> tuple[list[float], float]:
    """Each span's share of the time in which any runs, and that time: n at once get an nth each.

    Args:
        spans: (start, end) in one unit.
    """
    lasting = [(i, start, end) for i, (start, end) in enumerate(spans) if end > start]
    edges = sorted([(start, True, i) for i, start, _ in lasting] + [(end, False, i) for i, _, end in lasting])
    shares, running, busy, before = [0.0] * len(spans), set(), 0.0, 0.0
    for moment, begins, i in edges:
        if running:
            busy += moment - before
            for other in running:
                shares[other] += (moment - before) / len(running)
        before = moment
        (running.add if begins else running.discard)(i)
    return shares, busy
