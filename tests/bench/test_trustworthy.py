"""Can the verdicts be trusted? Sessions drawn from block times that were really measured, on a noisy shared machine.

`real_blocks.json` holds the trials of five live sessions (`make live`): the same setting under three names and a planted
slowdown of 5 %, four processes a trial. Twenty sessions are drawn from those trials and judged as any session is.
"""

import json
import random
from pathlib import Path

import pytest

from results import stats

REAL = json.loads((Path(__file__).parent / "real_blocks.json").read_text())["trials"]
NUM_SESSIONS, NUM_TRIALS = 20, 6


def step_ms(trials: list[dict], name: str, factor: float = 1.0) -> dict[int, float]:
    return {i: stats.median(trial[name]) * factor for i, trial in enumerate(trials)}


def verdicts(name: str, factor: float = 1.0) -> list[str]:
    """What twenty sessions say of a setting against the baseline."""
    rng = random.Random(0)
    found = []
    for _ in range(NUM_SESSIONS):
        trials = rng.sample(REAL, NUM_TRIALS)
        baseline = step_ms(trials, "baseline")
        floor = stats.noise_floor(baseline, step_ms(trials, "baseline-again"))
        found.append(stats.verdict(stats.paired(baseline, step_ms(trials, name, factor)), floor))
    return found


def test_there_are_enough_real_trials() -> None:
    assert len(REAL) >= 30
    assert all(len(times) >= 20 for trial in REAL for times in trial.values())


def test_the_same_setting_under_another_name_is_no_difference() -> None:
    assert verdicts("nothing_at_all").count(stats.NO_DIFFERENCE) >= 18


def test_a_planted_slowdown_is_found() -> None:
    assert verdicts("slowdown").count(stats.SLOWER) >= 18  # planted in the process, 5 % of every step
    assert verdicts("nothing_at_all", factor=1.05).count(stats.SLOWER) >= 18  # planted in the times


@pytest.mark.parametrize("name", ["nothing_at_all", "slowdown"])
def test_nothing_is_ever_called_faster_by_mistake(name: str) -> None:
    assert verdicts(name).count(stats.FASTER) <= 1
