"""A model in bfloat16 with its weights in the optimizer: nothing is cast, nothing that adds up is rounded, parity
holds.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.parity import OPTIMIZER, compare, trajectory
from hardware import detect
from model import MODELS
from optim_ladder import Settings, TrainStep, Workload, build, rung
from optim_ladder.rungs.bf16_weights import LayerNorm
from results.schema import Parity
from tests.optim_ladder.devices import CPU as ANY_CPU
from tests.optim_ladder.devices import H100, T4

HERE = detect("cuda" if torch.cuda.is_available() else "cpu")
WORKLOAD = Workload(model="pico", vocab_size=67, micro_batch=2, seq_len=64)
NAME = "bf16_weights"


def micro_batches(count: int, seed: int, workload: Workload = WORKLOAD) -> list[tuple[Tensor, Tensor]]:
    shape = (count, workload.micro_batch, workload.seq_len + 1)
    tokens = torch.randint(67, shape, generator=torch.Generator().manual_seed(seed)).to(HERE.torch_device())
    return [(rows[:, :-1], rows[:, 1:]) for rows in tokens]


def of(*rungs: str, workload: Workload = WORKLOAD) -> TrainStep:
    return build(Settings(workload=workload, rungs=rungs), HERE, optimizer=OPTIMIZER)


def parity(
    *rungs: str, count: int = 1, workload: Workload = WORKLOAD, spoil: Callable[[TrainStep], object] = lambda step: None
) -> Parity:
    """Ten steps against fp32."""
    batches = [micro_batches(count, seed, workload) for seed in range(10)]
    with of(workload=workload) as plain, of(*rungs, workload=workload) as step:
        spoil(step)
        return compare(trajectory(step, batches), trajectory(plain, batches), step.settings.drift)


def test_all_of_the_model_is_bfloat16_and_the_optimizer_knows_better() -> None:
    seen = []
    with of() as plain, of(NAME, "fused_adamw") as step:
        for block in step.model.h:
            block.register_forward_hook(lambda module, inputs, outputs: seen.extend(t.dtype for t in outputs))
        loss = step.backward(micro_batches(1, 0))
        assert set(seen) == {torch.bfloat16} and loss.dtype == torch.float32
        for p, exact in zip(step.model.parameters(), plain.model.parameters(), strict=True):
            assert p.dtype == p.grad.dtype == torch.bfloat16
            assert torch.equal(step.optimizer.state[p]["master"], exact) and torch.equal(p, exact.bfloat16())


@pytest.mark.parametrize("rungs", [(), ("fused_adamw",), ("flash", "padded_vocab", "fused_adamw")], ids="+".join)
def test_it_trains_as_fp32_does(rungs: tuple[str, ...]) -> None:
    found = parity(NAME, *rungs)
    assert found.passed, found.reason


def test_it_does_with_many_micro_batches_too() -> None:
    """Whose gradients are added up in bfloat16."""
    found = parity(NAME, count=32)
    assert found.passed and found.norm_drift < found.norm_bound / 2, (found.reason, found.norm_drift)


def forget_to_publish(step: TrainStep) -> None:
    """The masters are trained, the model stays as it was."""
    weights = [p.detach().clone() for p in step.model.parameters()]
    real = step.optimizer.step

    def kept() -> None:
        real()
        with torch.no_grad():
            torch._foreach_copy_(list(step.model.parameters()), weights)

    step.optimizer.step = kept


def scale_a_gradient(step: TrainStep) -> None:
    step.model.h[0].ln_1.bias.register_hook(lambda gradient: gradient * 1.1)


@pytest.mark.parametrize("fault", [forget_to_publish, scale_a_gradient])
def test_parity_within_these_bounds_finds_a_fault(fault: Callable[[TrainStep], object]) -> None:
    workload = replace(WORKLOAD, seq_len=32)
    assert parity(NAME, workload=workload).passed
    found = parity(NAME, workload=workload, spoil=fault)
    assert not found.passed, (found.loss_drift, found.gradient_drift, found.norm_drift)


def norm_errors(norm: nn.LayerNorm) -> list[float]:
    """Of the gradients of weight and bias over 512 tokens, relative."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(512, 256, generator=generator).bfloat16() for _ in range(2))
    exact = nn.LayerNorm(256).double()
    norm = norm.bfloat16()
    norm(x).backward(dy)
    exact(x.double()).backward(dy.double())
    pairs = zip(norm.parameters(), exact.parameters(), strict=True)
    return [float((p.grad.double() - q.grad).norm() / q.grad.norm()) for p, q in pairs]


def test_norms_add_up_in_fp32_on_a_processor_too() -> None:
    assert max(norm_errors(LayerNorm(256))) < 3e-3  # rounding the result once
    assert max(norm_errors(nn.LayerNorm(256))) > 1e-2  # PyTorch's own; once this fails, ours is not needed any more
    with of(NAME) as step:
        assert {type(m) for m in step.model.modules() if isinstance(m, nn.LayerNorm)} == {LayerNorm}


def test_the_gradient_is_clipped_by_its_true_norm() -> None:
    with of(NAME) as step:
        step.backward(micro_batches(1, 0))
        exact = torch.cat([p.grad.double().flatten() for p in step.model.parameters()]).norm()
        assert step.update().item() == pytest.approx(exact.item(), rel=1e-6)


def test_evaluating_and_sampling_compute_with_it() -> None:
    with of(NAME) as step, of() as plain:
        (batch,) = micro_batches(1, 0)
        with step.evaluating(), plain.evaluating():
            assert step.forward(*batch).item() == pytest.approx(plain.forward(*batch).item(), abs=5e-3)
        with step.sampling():
            assert step.model(batch[0]).dtype == torch.bfloat16


@pytest.mark.soak
def test_compiled_it_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "pico", replace(MODELS["pico"], n_layer=1))
    torch._dynamo.reset()
    found = parity(NAME, "compile", "fused_adamw", workload=replace(WORKLOAD, seq_len=32))
    assert found.passed, found.reason


def test_it_takes_the_place_of_autocast() -> None:
    settings = Settings(workload=WORKLOAD, rungs=(NAME, "cudnn_attention"))  # whose need is bf16
    assert settings.precision == "bf16" and "bf16" not in settings.rungs
    with pytest.raises(ValueError, match="'bf16' and 'bf16_weights' exclude each other"):
        Settings(workload=WORKLOAD, rungs=("bf16", NAME))
    unavailable = rung(NAME).unavailable
    assert unavailable(H100, WORKLOAD) is None and unavailable(ANY_CPU, WORKLOAD) is None
    assert "no bf16 arithmetic" in unavailable(T4, WORKLOAD)
