"""The few statistics a record needs, in plain Python.

Block times within one process are not independent, so a process counts once: a trial's value is the median of its
blocks, and every interval is a t-interval over trials, on logarithms, since speed-ups multiply.

Source: Student, "The Probable Error of a Mean" (1908); Welch, "The Generalization of 'Student's' Problem" (1947).
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference"
NO_INTERVAL, NO_FLOOR = "indicative, no interval", "indicative, no noise floor"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A quantity over ``n`` trials: its median and a 95 % interval (``None`` for one trial)."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How many times faster one setting is than another: over 1 is faster. The interval is 95 %."""

    ratio: float
    low: float | None
    high: float | None
    n: int


def median(values: Iterable[float]) -> float:
    """The middle value; of an even number, the mean of the two in the middle."""
    return percentile(values, 50.0)


def percentile(values: Iterable[float], percent: float) -> float:
    """The value below which ``percent`` of the values lie, interpolated linearly between neighbours.

    Args:
        values: at least one number, in any order.
        percent: from 0 to 100.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("values is empty; a percentile needs at least one number")
    place = (len(ordered) - 1) * percent / 100.0
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@functools.lru_cache(maxsize=256)
def t_quantile(df: float) -> float:
    """The 97.5 % quantile of Student's t, for any real number of degrees of freedom from 1 up.

    With t = √df · tan θ the distribution function is an integral of cos^(df-1) over a finite range, which Simpson's
    rule gives to ten digits; the quantile is then found by bisection on θ.
    """
    if df < 1.0:
        raise ValueError(f"df is {df}; a t-interval needs at least 1 degree of freedom, that is two trials")
    if df > 1e6:
        return 1.959964  # the normal distribution's
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)

    def above_half(theta: float, panels: int = 400) -> float:  # P(0 < t < √df · tan θ)
        h = theta / panels
        inner = sum((4 if i % 2 else 2) * math.cos(i * h) ** (df - 1) for i in range(1, panels))
        return scale * h / 3 * (1.0 + inner + math.cos(theta) ** (df - 1))

    low, high = 0.0, min(math.pi / 2, math.atan(13.0 / math.sqrt(df)))  # t(1) = 12.706 is the largest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if above_half(middle) < 0.475 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def estimate(values: Sequence[float]) -> Estimate:
    """Median and 95 % interval of per-trial values, all positive."""
    middle = median(values)
    low, high = _interval([math.log(v) for v in values])
    return Estimate(value=middle, low=_at_most(low, middle), high=_at_least(high, middle), n=len(values))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Effect | None:
    """How many times faster b is than a, from trials that measured both.

    What one trial has in common (temperature, a busy neighbour) cancels in its ratio.

    Args:
        a, b: trial index -> time, in one unit.

    Returns:
        The median of the per-trial ratios a/b with a t-interval on their logarithms; ``None`` without a shared trial.
    """
    logs = [math.log(a[i] / b[i]) for i in sorted(a.keys() & b.keys())]
    if not logs:
        return None
    ratio = math.exp(median(logs))
    low, high = _interval(logs)
    return Effect(ratio=ratio, low=_at_most(low, ratio), high=_at_least(high, ratio), n=len(logs))


def welch(a: Sequence[float], b: Sequence[float]) -> Effect | None:
    """How many times faster b is than a, from two sessions that share no trial.

    Args:
        a, b: per-trial times, in one unit.

    Returns:
        The ratio of geometric means with Welch's interval; ``None`` where one side is empty.
    """
    if not a or not b:
        return None
    (mean_a, var_a), (mean_b, var_b) = (_mean_and_variance([math.log(v) for v in side]) for side in (a, b))
    difference = mean_a - mean_b
    n = min(len(a), len(b))
    if n < 2:
        return Effect(ratio=math.exp(difference), low=None, high=None, n=n)
    error_a, error_b = var_a / len(a), var_b / len(b)  # squared standard errors
    spread = error_a + error_b
    df = spread**2 / (error_a**2 / (len(a) - 1) + error_b**2 / (len(b) - 1)) if spread > 0 else n - 1
    half = t_quantile(max(1.0, round(df, 3))) * math.sqrt(spread)
    return Effect(ratio=math.exp(difference), low=math.exp(difference - half), high=math.exp(difference + half), n=n)


def noise_floor(a: Mapping[int, float], again: Mapping[int, float]) -> float | None:
    """How far apart two runs of one setting come out: root mean square of their per-trial log-ratios, as a share of 1.

    Args:
        a, again: trial index -> time, of the same setting under two names.
    """
    logs = [math.log(a[i] / again[i]) for i in a.keys() & again.keys()]
    return math.expm1(math.sqrt(sum(x * x for x in logs) / len(logs))) if logs else None


def verdict(effect: Effect | None, floor: float | None) -> str | None:
    """What may be claimed: a difference only where the interval excludes 1 and the effect exceeds the noise floor.

    Args:
        effect: the comparison; ``None`` gives ``None``.
        floor: the record's noise floor, a share of 1; ``None`` where the A/A pair was not measured.
    """
    if effect is None:
        return None
    if effect.low is None or effect.high is None:
        return NO_INTERVAL
    if floor is None:
        return NO_FLOOR
    if effect.low <= 1.0 <= effect.high or abs(effect.ratio - 1.0) <= floor:
        return NO_DIFFERENCE
    return FASTER if effect.ratio > 1.0 else SLOWER


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)


def _interval(logs: Sequence[float]) -> tuple[float | None, float | None]:
    if len(logs) < 2:
        return None, None
    mean, variance = _mean_and_variance(logs)
    half = t_quantile(len(logs) - 1) * math.sqrt(variance / len(logs))
    return math.exp(mean - half), math.exp(mean + half)


# The interval is centred on the mean and the estimate is the median: with many trials and one outlier the estimate
# could fall outside, so the interval is widened to hold it (also against rounding where all trials agree).
def _at_most(bound: float | None, value: float) -> float | None:
    return None if bound is None else min(bound, value)


def _at_least(bound: float | None, value: float) -> float | None:
    return None if bound is None else max(bound, value)
