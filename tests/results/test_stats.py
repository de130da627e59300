"""Statistics against published tables, hand-worked cases, numpy, and sessions with a known answer."""

import math
import random
import statistics

import numpy as np
import pytest

from results import stats
from results.stats import FASTER, NO_DIFFERENCE, NO_FLOOR, NO_INTERVAL, SLOWER, Effect

# Table of the 97.5 % quantile, e.g. NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
T_TABLE = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    9: 2.262,
    15: 2.131,
    30: 2.042,
    100: 1.984,
    1000: 1.962,
}


@pytest.mark.parametrize(("df", "quantile"), T_TABLE.items())
def test_t_quantile_is_the_tables(df, quantile):
    assert stats.t_quantile(df) == pytest.approx(quantile, abs=6e-4)


def test_t_quantile_between_whole_numbers_agrees_with_drawn_values():
    df = 2.5  # t = normal / sqrt(chi-square / df), and a chi-square is a gamma
    rng = np.random.default_rng(1)
    drawn = rng.standard_normal(400_000) / np.sqrt(rng.gamma(df / 2, 2.0, 400_000) / df)
    assert np.mean(np.abs(drawn) < stats.t_quantile(df)) == pytest.approx(0.95, abs=0.002)


def test_t_quantile_falls_to_the_normal_one():
    values = [stats.t_quantile(df) for df in (1, 1.5, 2, 10, 1e3, 1e5, 1e7)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-5)


def test_t_quantile_needs_a_degree_of_freedom():
    with pytest.raises(ValueError, match="df is 0"):
        stats.t_quantile(0)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("percent", [0, 20, 37.5, 50, 80, 100])
def test_percentile_is_numpys(size, percent):
    values = [random.Random(size).uniform(1, 2) for _ in range(size)]
    assert stats.percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert stats.median(values) == pytest.approx(statistics.median(values))


def test_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty"):
        stats.percentile([], 50)


def test_paired_effect_by_hand():
    # Ratios 2, 2.2, 2.4: median 2.2; interval exp(mean ± 4.303 · s / √3) of their logarithms.
    effect = stats.paired({0: 20.0, 1: 22.0, 2: 24.0, 3: 99.0}, {0: 10.0, 1: 10.0, 2: 10.0})
    logs = np.log([2.0, 2.2, 2.4])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    assert effect.n == 3 and effect.ratio == pytest.approx(2.2)
    assert effect.low == pytest.approx(math.exp(logs.mean() - half), rel=1e-6)
    assert effect.high == pytest.approx(math.exp(logs.mean() + half), rel=1e-6)


def test_paired_effect_cancels_what_a_trial_has_in_common():
    busy = [1.0, 1.3, 0.8, 1.1]
    effect = stats.paired({i: 10 * b for i, b in enumerate(busy)}, {i: 8 * b for i, b in enumerate(busy)})
    assert effect.low == pytest.approx(1.25) and effect.high == pytest.approx(1.25)


def test_paired_effect_without_shared_trials_and_with_one():
    assert stats.paired({0: 1.0}, {1: 1.0}) is None
    assert stats.paired({0: 3.0}, {0: 2.0}) == Effect(ratio=1.5, low=None, high=None, n=1)


def test_an_outlier_never_leaves_the_estimate_outside_its_interval():
    times = {i: 1.0 for i in range(12)} | {12: 100.0}
    effect = stats.paired(times, dict.fromkeys(range(13), 1.0))
    assert effect.low <= effect.ratio <= effect.high


def test_welch_by_hand():
    a, b = [10.0, 11.0, 12.0], [9.0, 9.1, 9.2, 9.3]
    la, lb = np.log(a), np.log(b)
    va, vb = la.var(ddof=1) / 3, lb.var(ddof=1) / 4
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    effect = stats.welch(a, b)
    assert effect.ratio == pytest.approx(math.exp(la.mean() - lb.mean()))
    assert math.log(effect.high / effect.ratio) == pytest.approx(stats.t_quantile(round(df, 3)) * math.sqrt(va + vb))
    assert effect.low == pytest.approx(effect.ratio**2 / effect.high)


def test_welch_copes_with_few_and_with_equal_values():
    assert stats.welch([], [1.0]) is None
    assert stats.welch([2.0], [1.0, 1.0]) == Effect(ratio=2.0, low=None, high=None, n=1)
    assert stats.welch([2.0, 2.0], [2.0, 2.0]) == Effect(ratio=1.0, low=1.0, high=1.0, n=2)


def test_noise_floor_by_hand():
    assert stats.noise_floor({0: 1.0, 1: 1.0}, {0: math.exp(0.03), 1: math.exp(-0.04)}) == pytest.approx(
        math.expm1(math.sqrt((0.03**2 + 0.04**2) / 2))
    )
    assert stats.noise_floor({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("ratio", "low", "high", "floor", "expected"),
    [
        (1.10, 1.05, 1.15, 0.02, FASTER),
        (0.90, 0.85, 0.95, 0.02, SLOWER),
        (1.10, 0.99, 1.20, 0.02, NO_DIFFERENCE),  # its own interval
        (1.10, 1.05, 1.15, 0.12, NO_DIFFERENCE),  # the noise floor
        (0.90, 0.85, 0.95, 0.12, NO_DIFFERENCE),
        (1.00, 1.00, 1.00, 0.0, NO_DIFFERENCE),
        (2.00, None, None, 0.02, NO_INTERVAL),
        (2.00, 1.90, 2.10, None, NO_FLOOR),
    ],
)
def test_verdict(ratio, low, high, floor, expected):
    assert stats.verdict(Effect(ratio=ratio, low=low, high=high, n=5), floor) == expected


def test_no_effect_no_verdict():
    assert stats.verdict(None, 0.01) is None


def _session(rng, speed_up, noise, trials=5):
    """Verdict on b over a, and b and a share a drift that a sequential comparison would fall for."""
    drift = [1.0 + 0.05 * i / trials for i in range(trials)]

    def times(step_ms):
        return {i: step_ms * d * rng.gauss(1.0, noise) for i, d in enumerate(drift)}

    a, again, b = times(100.0), times(100.0), times(100.0 / speed_up)
    return stats.verdict(stats.paired(a, b), stats.noise_floor(a, again))


@pytest.mark.parametrize("noise", [0.01, 0.015, 0.02])
def test_equal_settings_come_out_as_no_difference(noise):
    rng = random.Random(2)
    assert sum(_session(rng, 1.0, noise) == NO_DIFFERENCE for _ in range(20)) >= 18
    assert sum(_session(rng, 1.0, noise) == NO_DIFFERENCE for _ in range(500)) >= 0.95 * 500


@pytest.mark.parametrize("noise", [0.01, 0.015])
def test_a_planted_five_percent_is_found_with_its_sign(noise):
    rng = random.Random(3)
    assert sum(_session(rng, 1.05, noise) == FASTER for _ in range(20)) >= 18
    assert sum(_session(rng, 1 / 1.05, noise) == SLOWER for _ in range(20)) >= 18


@pytest.mark.parametrize("compare", ["paired", "welch", "estimate"])
def test_intervals_cover_the_truth_nineteen_times_in_twenty(compare):
    rng, hits, runs = random.Random(4), 0, 600
    for _ in range(runs):
        a = [math.exp(rng.gauss(0.0, 0.02)) for _ in range(4)]
        b = [math.exp(rng.gauss(math.log(0.8), 0.03)) for _ in range(6)]
        if compare == "paired":
            effect, truth = stats.paired(dict(enumerate(a)), dict(enumerate(b[:4]))), 1.25
        elif compare == "welch":
            effect, truth = stats.welch(a, b), 1.25
        else:
            effect, truth = stats.estimate(a), 1.0
        hits += effect.low <= truth <= effect.high
    assert 0.93 <= hits / runs <= 0.975  # 0.95 ± 2.5 standard errors
