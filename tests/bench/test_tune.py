"""Finding the fastest micro-batch, with workers whose speed is planted."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.launch import Outcome
from bench.tune import Question, Tuner, divisors, micro_batches
from hardware import Device
from optim_ladder import Settings, Workload
from tests.bench.fakes import FakeLauncher, Silent, tokens, trial
from tests.optim_ladder.devices import CPU, H100

WORKLOAD = Workload(model="nano", vocab_size=8192, seq_len=16)
OOM = Outcome(status="oom", reason="OutOfMemoryError: planted")
OPTIMIZER_MS = 40.0


def tuned(
    tmp_path: Path,
    sequence_ms: Callable[[int], float],
    *,
    device: Device = H100,
    sequences: int = 64,
    usual: int = 4,
    num_trials: int = 4,
    faults: Callable[[int, str], Outcome | None] = lambda b, name: None,
    noise: float = 1e-4,
    memory_bytes: Callable[[int], int] = lambda b: 2**28,
    stop_after: int = 2,
) -> tuple[Tuner, Silent]:
    """A tuner after both phases, where a step takes b × sequence_ms(b) per micro-batch and 40 ms at the end."""
    rng = np.random.default_rng(0)

    def answer(name: str, job: dict) -> Outcome:
        w = job["settings"]["workload"]
        if fault := faults(w["micro_batch"], name):
            return fault
        step_ms = w["grad_accumulation"] * w["micro_batch"] * sequence_ms(w["micro_batch"]) + OPTIMIZER_MS
        result = trial(job, step_ms * math.exp(rng.normal(0, noise)))
        return Outcome(status="ok", result={**result, "peak_memory_bytes": memory_bytes(w["micro_batch"])})

    question = Question(
        device=device, settings=Settings(workload=WORKLOAD), sequences=sequences, usual=usual, num_trials=num_trials
    )
    tuner, reporter = Tuner(question, tokens().tokens, FakeLauncher(tmp_path, faults=answer)), Silent()
    for phase in (tuner.look, tuner.compare)[:stop_after]:
        phase(reporter)
    return tuner, reporter


def best_at(size: int) -> Callable[[int], float]:
    """ms per sequence: falls to 10 at one size, and rises by three tenths per doubling on both sides."""
    return lambda b: 10.0 * 1.3 ** abs(math.log2(b / size))


def measured(tuner: Tuner) -> list[dict]:
    return [job for _, job, _ in tuner.launcher.jobs]


@pytest.mark.parametrize("size", [1, 8, 64])
def test_the_fastest_is_found_even_when_it_is_not_the_largest(tmp_path: Path, size: int) -> None:
    tuner, _ = tuned(tmp_path, best_at(size))
    choice = tuner.choose()
    assert choice.micro_batch == choice.fastest == size and choice.why == "the fastest"
    assert set(choice.verdicts.values()) == {"slower"}


def test_growth_stops_when_two_sizes_in_a_row_are_slower(tmp_path: Path) -> None:
    tuner, reporter = tuned(tmp_path, best_at(4), sequences=256)
    assert {job["settings"]["workload"]["micro_batch"] for job in measured(tuner)} == {1, 2, 4, 8, 16}
    assert tuner.candidates[32].status == "not run" and "already slower" in tuner.candidates[32].reason
    assert reporter.lines[8].startswith("micro-batch 256: not tried")


def test_what_is_far_from_the_best_is_not_compared(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, best_at(16))
    assert [b for b, c in tuner.candidates.items() if c.trials] == [8, 16, 32]
    assert tuner.candidates[1].status == "ok" and tuner.candidates[1].tokens_per_second(16).low is None


def test_a_tie_goes_to_the_smaller_micro_batch(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, lambda b: max(10.0, best_at(4)(b)) if b < 4 else 10.0, noise=0.01)
    choice = tuner.choose()
    assert choice.micro_batch == 4
    assert choice.fastest == 4 or ("not told apart" in choice.why and choice.verdicts[4] == "no difference")


def test_every_compared_step_has_the_same_sequences_so_that_the_optimizer_weighs_the_same(tmp_path: Path) -> None:
    """With one micro-batch per step, 40 ms of optimizer would make the larger of two equal sizes look 4 times as fast."""
    tuner, _ = tuned(tmp_path, lambda b: 1.0, sequences=1024)
    compared = [job for job in measured(tuner) if tuner.sequences == _sequences(job)]
    assert {job["settings"]["workload"]["micro_batch"] for job in compared} >= {1, 2, 4, 1024}
    assert len({job["batches"] for job in compared}) == 1
    assert tuner.sequences == 1024 and tuner.choose().micro_batch == 1


def test_a_measured_step_is_long_enough_and_has_two_micro_batches(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, best_at(8), sequences=512)
    looks = [job for name, job, _ in tuner.launcher.jobs if name.endswith("look")]
    first, again, *others = [(job["settings"]["workload"]["micro_batch"], _sequences(job)) for job in looks]
    assert first == (1, 2)  # nothing is known yet
    assert again == (1, 8)  # 250 ms, of 42.0 ms per sequence
    assert others[0] == (2, 16)  # 216 ms were long enough
    assert all(sequences >= 2 * b for b, sequences in others)
    assert tuner.sequences == 32 and [b for b, c in tuner.candidates.items() if c.trials] == [4, 8, 16]


def test_out_of_memory_ends_growth_and_is_told(tmp_path: Path) -> None:
    tuner, reporter = tuned(tmp_path, best_at(64), faults=lambda b, name: OOM if b >= 16 else None)
    assert tuner.choose().micro_batch == 8
    assert tuner.candidates[16].status == "oom" and "planted" in tuner.candidates[16].reason
    assert tuner.candidates[32].reason == "not tried: micro-batch 16 before it: oom"
    assert any(line.startswith("micro-batch 16: oom: look: OutOfMemoryError") for line in reporter.lines)


def test_a_crash_is_that_sizes_own_and_larger_ones_are_tried(tmp_path: Path) -> None:
    crash = Outcome(status="crashed", reason="planted")
    tuner, _ = tuned(tmp_path, best_at(16), faults=lambda b, name: crash if b == 8 else None)
    assert tuner.candidates[8].status == "crashed" and tuner.choose().micro_batch == 16


def test_what_fails_in_a_trial_is_not_chosen(tmp_path: Path) -> None:
    late = lambda b, name: OOM if b == 16 and name.endswith("16") else None  # noqa: E731
    tuner, _ = tuned(tmp_path, best_at(16), faults=late)
    assert tuner.candidates[16].status == "oom" and tuner.choose().micro_batch in (8, 32)


def test_a_size_that_failed_once_is_out_even_if_its_twin_succeeds(tmp_path: Path) -> None:
    late = lambda b, name: OOM if name.endswith("-16") else None  # noqa: E731
    tuner, _ = tuned(tmp_path, best_at(16), device=CPU, faults=late, memory_bytes=lambda b: 2**20)
    assert tuner.twice == 16 and tuner.again and tuner.candidates[16].status == "oom"
    assert tuner.choose().micro_batch in (8, 32)


def test_on_a_processor_what_would_not_fit_is_not_tried(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, best_at(64), device=CPU, memory_bytes=lambda b: (1 + b) * 2**30)  # of 16 GiB
    assert tuner.candidates[8].status == "ok" and tuner.candidates[16].status == "not run"
    assert "would take about 17.0 of 16.0 GiB" in tuner.candidates[16].reason


def test_on_a_processor_sizes_take_turns_and_trials_are_mirrored(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, best_at(8), device=CPU, memory_bytes=lambda b: 2**20)
    assert [b for b, c in tuner.candidates.items() if len(c.trials) == 4] == [1, 2, 4, 8, 16, 32]  # near or not
    visits = tuner.launcher.visits
    names = {f"micro-batch-{b}-{b}" for b in (1, 2, 4, 8, 16, 32)} | {"micro-batch-8-8-again"}
    assert set(visits[:7]) == set(visits[7:14]) == names
    orders = [[n for n, job, _ in tuner.launcher.jobs if n in names and job["trial"] == t] for t in range(4)]
    assert orders[1] == orders[0][::-1] and orders[3] == orders[2][::-1]


def test_on_a_processor_a_disturbed_look_loses_nothing(tmp_path: Path) -> None:
    """The first two looks at the fastest size, and the first at the one after it, meet a neighbour that takes the processor."""
    disturbed = iter([8.0, 8.0, 1.0])
    looks = {8: disturbed, 16: iter([8.0, 1.0])}

    def sequence_ms(b: int) -> float:
        return best_at(8)(b) * next(looks.get(b, iter(())), 1.0)

    tuner, _ = tuned(tmp_path, sequence_ms, device=CPU, memory_bytes=lambda b: 2**20)
    assert tuner.candidates[8].look_ms > 50 and tuner.candidates[16].look_ms < 20
    assert tuner.choose().micro_batch == 8


def test_one_trial_is_indicative_and_trusts_the_noise_floor_alone(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, best_at(8), num_trials=1)
    choice = tuner.choose()
    assert choice.micro_batch == 8 and choice.why == "the fastest (indicative: one trial)"
    assert set(choice.verdicts.values()) == {"indicative, no interval"}


def test_one_size_alone_needs_no_comparison(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, best_at(8), faults=lambda b, name: OOM if b > 1 else None)
    choice = tuner.choose()
    assert choice.micro_batch == 1 and choice.why == "no other one could be measured" and not tuner.again


def test_where_nothing_fits_one_line_says_so(tmp_path: Path) -> None:
    tuner, _ = tuned(tmp_path, best_at(8), faults=lambda b, name: OOM)
    with pytest.raises(ValueError, match=r"no micro-batch of nano .* H100 .*oom: look: OutOfMemoryError.* lower train.seq_len"):
        tuner.choose()


def test_equal_sizes_are_rarely_told_apart(tmp_path: Path) -> None:
    """Under 5 % noise, the smallest of four equal sizes is chosen nine times out of ten or more."""
    chosen = []
    for seed in range(30):
        folder = tmp_path / str(seed)
        folder.mkdir()
        noise = np.random.default_rng(seed).normal(0, 0.05, 10_000)
        calls = iter(noise)
        tuner, _ = tuned(folder, lambda b: 10.0 * math.exp(next(calls)), sequences=8, noise=0.0)
        chosen.append(tuner.choose().micro_batch)
    assert chosen.count(1) >= 27


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (1, [1]),
        (8, [1, 2, 4, 8]),
        (19, [1, 19]),
        (100, [1, 2, 4, 10, 20, 25, 50, 100]),
        (448, [1, 2, 4, 8, 16, 32, 64, 112, 224, 448]),
    ],
)
def test_candidates_are_divisors_near_powers_of_two(sequences: int, expected: list[int]) -> None:
    assert micro_batches(sequences) == expected
    assert set(expected) <= set(divisors(sequences))


def test_a_usual_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="usual is 3; it must divide sequences=8"):
        Question(device=CPU, settings=Settings(workload=WORKLOAD), sequences=8, usual=3)


def _sequences(job: dict) -> int:
    w = job["settings"]["workload"]
    return w["micro_batch"] * w["grad_accumulation"]
