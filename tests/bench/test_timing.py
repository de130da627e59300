"""Warm-up and blocks, on a clock that the tests turn by hand."""

import gc
import math
import time
from dataclasses import dataclass, field

import pytest

from bench.timing import MIN_BLOCK_MS, Stretch, garbage_frozen, steady_state, stopwatch, warm_up
from hardware import detect


@dataclass(frozen=True)
class Seen:
    slowdown: frozenset = frozenset()
    capped: frozenset = frozenset()
    values: dict = field(default_factory=dict)
    notes: tuple = ()


class Quiet:
    def between(self, start: float, end: float) -> Seen:
        return Seen(values={"sm_clock_mhz": 1980.0})


class Throttled:
    """Slow in the stretches whose numbers are given."""

    def __init__(self, *bad: int, capped: bool = False) -> None:
        self.bad, self.count, self.capped = set(bad), -1, frozenset({"power cap"}) if capped else frozenset()

    def between(self, start: float, end: float) -> Seen:
        self.count += 1
        return Seen(slowdown=frozenset({"thermal"}) if self.count in self.bad else frozenset(), capped=self.capped)


class Steps:
    """A measure function whose steps take the given milliseconds, the last one for ever after."""

    def __init__(self, *step_ms: float) -> None:
        self.step_ms, self.done = step_ms, 0

    def __call__(self, times: int) -> Stretch:
        taken = [self.step_ms[min(self.done + i, len(self.step_ms) - 1)] for i in range(times)]
        self.done += times
        return Stretch(device_ms=0.9 * sum(taken), wall_ms=sum(taken), start=0.0, end=1.0)


def test_warm_up_ends_when_the_running_median_has_settled() -> None:
    steps = Steps(*[100.0 * 0.8**i for i in range(20)], 1.0)
    warm = warm_up(steps)
    assert warm.settled and warm.step_ms == 1.0
    assert 27 <= warm.steps <= 32  # both windows of five lie in the flat part but for what a median ignores


def test_one_slow_step_does_not_keep_the_warm_up_going() -> None:
    assert warm_up(Steps(*[10.0] * 7, 500.0, 10.0)).steps == 10


def test_warm_up_gives_up_and_says_so() -> None:
    warm = warm_up(Steps(*[1.1**i for i in range(100)]), max_steps=25)
    assert (warm.steps, warm.settled) == (25, False)
    impatient = warm_up(Steps(*[1.1**i for i in range(100)]), max_seconds=0.0)
    assert (impatient.steps, impatient.settled) == (10, False)


@pytest.mark.parametrize(("step_ms", "steps"), [(0.7, 79), (10.0, 6), (49.0, 2), (400.0, 1)])
def test_a_block_lasts_at_least_50_ms(step_ms: float, steps: int) -> None:
    blocks = steady_state(Steps(step_ms), Quiet(), step_ms=step_ms, num_blocks=20)
    assert blocks.steps_per_block == steps and steps * step_ms >= MIN_BLOCK_MS
    assert len(blocks.wall_ms) == len(blocks.device_ms) == 20
    assert blocks.wall_ms[0] == pytest.approx(step_ms) and blocks.device_ms[0] == pytest.approx(0.9 * step_ms)
    assert blocks.telemetry == {"sm_clock_mhz": 1980.0} and blocks.flags == []


def test_after_waiting_for_its_turn_a_process_takes_one_step_untimed() -> None:
    log = []
    steps = Steps(60.0)

    def measure(times: int) -> Stretch:
        log.append(times)
        return steps(times)

    blocks = steady_state(measure, Quiet(), step_ms=20.0, num_blocks=3, turn=lambda: log.append("turn"))
    assert log == ["turn", 1, 3] * 3 and len(blocks.wall_ms) == 3


def test_a_throttled_block_is_measured_again() -> None:
    steps = Steps(*[60.0] * 3, 90.0, 90.0, 60.0)  # the fourth and fifth stretch are slow, and known to be
    blocks = steady_state(steps, Throttled(3, 4), step_ms=60.0, num_blocks=5)
    assert blocks.wall_ms == [60.0] * 5
    assert blocks.flags == ["2 blocks measured again after a slowdown"]


def test_a_block_throttled_four_times_is_kept_and_flagged() -> None:
    blocks = steady_state(Steps(60.0), Throttled(1, 2, 3, 4), step_ms=60.0, num_blocks=3)
    assert len(blocks.wall_ms) == 3
    assert blocks.flags[0] == "thermal in 1 of 3 blocks, kept after 4 tries"


def test_a_power_cap_is_recorded_and_nothing_measured_again() -> None:
    steps = Steps(60.0)
    blocks = steady_state(steps, Throttled(capped=True), step_ms=60.0, num_blocks=4)
    assert steps.done == 4 and blocks.flags == ["power cap in 4 of 4 blocks"]


def test_the_stopwatch_agrees_with_a_known_duration() -> None:
    stretch = stopwatch(detect("cpu"))(lambda: time.sleep(0.01), 5)
    assert 50.0 <= stretch.wall_ms < 80.0 and stretch.device_ms == stretch.wall_ms
    assert stretch.end - stretch.start == pytest.approx(stretch.wall_ms / 1e3)


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a GPU")
def test_cuda_events_and_wall_clock_agree_on_a_long_block() -> None:
    import torch

    a = torch.randn(4096, 4096, device="cuda")
    stretch = stopwatch(detect("cuda"))(lambda: a @ a, 50)
    assert stretch.device_ms == pytest.approx(stretch.wall_ms, rel=0.1)


def test_the_harness_adds_under_half_a_percent() -> None:
    """Everything the harness does between a block's two readings, beside the same work in a bare loop."""
    timed, calls = stopwatch(detect("cpu")), 20_000
    overhead_ms = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            math.sqrt(2.0)
        bare = time.perf_counter() - start
        overhead_ms.append(timed(lambda: math.sqrt(2.0), calls).wall_ms - bare * 1e3)
    per_step_ms = sorted(overhead_ms)[2] / calls
    assert per_step_ms < 0.005 * 1.0  # of a step of 1 ms, shorter than any of ours


def test_garbage_collection_stands_still_meanwhile() -> None:
    assert gc.isenabled()
    with garbage_frozen():
        assert not gc.isenabled() and gc.get_freeze_count() > 0
    assert gc.isenabled() and gc.get_freeze_count() == 0
