"""The parity check passes what trains the same and catches every planted fault."""

import math
from dataclasses import replace

import pytest
import torch

from bench import parity
from bench.parity import Trajectory, compare, gradient_error, sketch, trajectory
from hardware import detect
from model import GPT2
from optim_ladder import LADDER, Settings, Workload, build
from optim_ladder.rung import REORDERED
from tests.bench import planted

CPU = detect("cpu")
WORKLOAD = Workload(model="nano", vocab_size=211, micro_batch=2, seq_len=32)


def batches(seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(211, (2, 33), generator=generator) for _ in range(parity.NUM_STEPS)]
    return [[(t[:, :-1], t[:, 1:])] for t in tokens]


def run(rungs: tuple[str, ...], seed: int = 0, workload: Workload = WORKLOAD) -> Trajectory:
    with build(Settings(workload=workload, rungs=rungs), CPU, seed=seed, optimizer=parity.OPTIMIZER) as step:
        return trajectory(step, batches(seed))


@pytest.fixture
def planted_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optim_ladder.ladder.LADDER", (*LADDER, *planted.PLANTED))


@pytest.mark.parametrize("rungs", [(), ("flash",), ("fused_adamw",), ("bf16",), ("bf16", "flash", "fused_adamw")])
def test_honest_settings_pass(rungs: tuple[str, ...]) -> None:
    result = compare(run(rungs), run(()), Settings(workload=WORKLOAD, rungs=rungs).drift)
    assert result.passed, result.reason
    assert result.loss_drift < result.loss_bound / 5


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fault", list(planted.WRONG))
def test_every_planted_fault_is_caught(planted_ladder: None, fault: str, seed: int) -> None:
    result = compare(run((fault,), seed), run((), seed), REORDERED)
    assert not result.passed
    assert "differs from fp32" in result.reason


@pytest.mark.parametrize("fault", list(planted.WRONG))
def test_every_planted_fault_is_caught_even_within_the_bounds_of_bf16(planted_ladder: None, fault: str) -> None:
    bound = Settings(workload=WORKLOAD, rungs=("bf16",)).drift
    assert not compare(run(("bf16", fault)), run(()), bound).passed


def test_the_named_parameter_is_the_guilty_one(planted_ladder: None) -> None:
    result = compare(run(("one_bias_flipped",)), run(()), REORDERED)
    assert result.gradient_drift == pytest.approx(2.0)  # -g against g
    assert "gradient of h.0.ln_1.bias" in result.reason


def test_a_loss_over_padding_columns_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What padding the vocabulary does when the softmax is not cut: the loss is another loss."""
    reference = run(())
    honest = GPT2.forward

    def uncut(self: GPT2, idx, targets=None):
        config = self.config
        self.config = replace(config, vocab_size=config.rows)
        try:
            return honest(self, idx, targets)
        finally:
            self.config = config

    monkeypatch.setattr(GPT2, "forward", uncut)
    result = compare(run(("padded_vocab",)), reference, REORDERED)
    assert not result.passed and result.loss_drift > 0.01


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_wrong_and_can_be_written(broken: float) -> None:
    reference = run(())
    measured = replace(reference, loss=[*reference.loss[:-1], broken])
    result = compare(measured, reference, REORDERED)
    assert not result.passed
    assert all(math.isfinite(x) for x in (*result.loss, result.loss_drift))


def test_a_sketch_tells_how_far_two_gradients_are_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(200):
        a, b = torch.randn(2, 999, generator=generator)
        error, name = gradient_error({"p": sketch(a + 0.1 * b).tolist()}, {"p": sketch(a).tolist()})
        estimates.append(error / (0.1 * b.norm() / a.norm()).item())
        assert name == "p"
    assert sum(estimates) / len(estimates) == pytest.approx(1.0, abs=0.03)
    assert min(estimates) > 0.6 and max(estimates) < 1.6


def test_a_tile_that_landed_elsewhere_is_seen() -> None:
    """What a kernel with a wrong offset does: whole rows moved by a power of two."""
    a = torch.randn(2048, 256, generator=torch.Generator().manual_seed(0))
    for moved in (a.roll(512, 0), a.roll(1024, 0), a.roll(64, 1), torch.cat([a[1024:], a[:1024]])):
        assert gradient_error({"p": sketch(moved).tolist()}, {"p": sketch(a).tolist()})[0] > 0.8


def test_a_sketch_does_not_depend_on_the_layout() -> None:
    a = torch.randn(37, 53, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sketch(a), sketch(a.t().contiguous().t()))
    torch.testing.assert_close(sketch(3 * a), 3 * sketch(a), atol=1e-5, rtol=1e-5)


def test_a_missing_parameter_is_an_infinite_error() -> None:
    assert gradient_error({"a": [1.0]}, {"a": [1.0], "b": [0.0]}) == (math.inf, "b")
    assert gradient_error({"a": [1.0]}, {"a": [0.0]})[0] == math.inf
