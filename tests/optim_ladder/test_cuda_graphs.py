"""Replays that write to the same memory: nothing that is still wanted may lie in it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hardware import detect
from optim_ladder import LADDER, Settings, TrainStep, Workload, build, rung
from optim_ladder.rungs.cuda_graphs import outliving, recording
from tests.optim_ladder.devices import CPU as ANY_CPU
from tests.optim_ladder.devices import H100

CPU = detect("cpu")
WORKLOAD = Workload(model="pico", vocab_size=67, micro_batch=2, seq_len=16, grad_accumulation=3)
RUNGS = ("compile", "cuda_graphs")


def micro_batches(count: int, seed: int = 0, target: str | torch.device = "cpu") -> list[tuple[Tensor, Tensor]]:
    tokens = torch.randint(67, (count, 2, 17), generator=torch.Generator().manual_seed(seed)).to(target)
    return [(rows[:, :-1], rows[:, 1:]) for rows in tokens]


class SameMemory:
    """A module as a CUDA graph makes it: its loss, and gradients that autograd did not add to others, do not outlive
    the next call."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.given, self.alone = module, [], set()
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(lambda p: self.given.append(p.grad) if p in self.alone else None)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def __call__(self, idx: Tensor, targets: Tensor) -> Tensor:
        for tensor in self.given:
            tensor.fill_(torch.nan)
        self.alone = {p for p in self.parameters() if p.grad is None}
        loss = self.module(idx, targets)
        self.given = [loss.detach()]
        return loss


@pytest.fixture
def step_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainStep]:
    """A training step whose module is wrapped in something."""

    def make(wrap: Callable, *rungs: str) -> TrainStep:
        other = replace(rung("padded_vocab"), name="wrapped", model_config=lambda config: config, compile=wrap)
        monkeypatch.setattr("optim_ladder.ladder.LADDER", (*LADDER, other))
        return build(Settings(workload=WORKLOAD, rungs=(*rungs, "wrapped")), CPU)

    return make


@pytest.mark.parametrize("rungs", [(), ("bf16_weights",)], ids=["fp32", "bf16_weights"])
def test_accumulated_gradients_and_losses_outlive_the_next_replay(step_with, rungs: tuple[str, ...]) -> None:
    with build(Settings(workload=WORKLOAD, rungs=rungs), CPU) as plain:
        expected = [plain(micro_batches(count, seed)) for seed, count in enumerate((3, 1, 2, 3))]
        weights = [p.detach().clone() for p in plain.model.parameters()]
    with step_with(lambda module: outliving(SameMemory(module)), *rungs) as step:
        found = [step(micro_batches(count, seed)) for seed, count in enumerate((3, 1, 2, 3))]
        assert found == expected
        assert all(torch.equal(p, w) for p, w in zip(step.model.parameters(), weights, strict=True))


def test_without_the_buffers_it_shows(step_with) -> None:
    """The stand-in does what is feared: the test above can fail."""
    with step_with(SameMemory) as step:
        assert step(micro_batches(1))[1].isfinite()
        assert step(micro_batches(3))[1].isnan()


def test_gradients_are_moved_once_a_step(step_with, monkeypatch: pytest.MonkeyPatch) -> None:
    moves, move = [], torch._foreach_copy_
    with step_with(outliving) as step:
        monkeypatch.setattr(torch, "_foreach_copy_", lambda *tensors: moves.append(len(tensors[0])) or move(*tensors))
        step.backward(micro_batches(4))
        assert moves == [len(list(step.model.parameters()))]
        step.optimizer.zero_grad()
        step.backward(micro_batches(2))
        first = [p.grad for p in step.model.parameters()]
        step.optimizer.zero_grad()
        step.backward(micro_batches(3))
        again = [p.grad for p in step.model.parameters()]
        assert all(g is before for g, before in zip(again, first, strict=True))  # the same buffers, added to
        step.optimizer.zero_grad()
        step.backward(micro_batches(1))
        assert not any(p.grad is g for p, g in zip(step.model.parameters(), first, strict=True))  # none are needed


def test_losses_of_a_validation_outlive_each_other(step_with) -> None:
    batches = micro_batches(4)
    with step_with(lambda module: outliving(SameMemory(module))) as step, step.evaluating():
        collected = [step.forward(*batch) for batch in batches]
        assert torch.equal(torch.stack(collected), torch.stack([step.model(*batch) for batch in batches]))


def test_the_compiler_is_told_and_untold() -> None:
    from torch._inductor import config

    def state() -> tuple[bool, ...]:
        return config.triton.cudagraphs, config.triton.cudagraph_or_error, config.graph_partition

    before = state()
    assert before == (False, False, True)
    with pytest.raises(KeyError), recording(CPU):
        assert state() == (True, True, False)
        raise KeyError
    assert state() == before


def test_what_cannot_be_recorded_is_not_left_out_without_a_word() -> None:
    """PyTorch would cut a graph in two around what runs on the processor, and find nothing wrong."""
    from torch._inductor import config
    from torch._inductor.cudagraph_utils import check_lowering_disable_cudagraph

    def objection() -> str | None:
        node = torch.fx.Graph().placeholder("x")
        return check_lowering_disable_cudagraph({torch.device("cuda", 0): node, torch.device("cpu"): node})

    with config.patch({"triton.cudagraphs": True}):
        assert objection() is None
    with recording(CPU):
        assert "cpu device" in objection()


def test_where_it_cannot_run_it_says_why() -> None:
    unavailable = rung("cuda_graphs").unavailable
    assert unavailable(H100, WORKLOAD) is None
    assert unavailable(ANY_CPU, WORKLOAD) == "CUDA graphs are for NVIDIA GPUs"
    assert "processes" in unavailable(H100, replace(WORKLOAD, world_size=2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [(), ("fused_adamw", "flash"), ("bf16_weights", "triton_adamw")], ids="+".join)
def test_on_a_gpu_a_run_is_the_same_with_and_without(more: tuple[str, ...]) -> None:
    """Steps of one and of several micro-batches, dropout, a validation in between."""
    device = detect("cuda")
    workload = replace(WORKLOAD, dropout=0.1)

    def run(rungs: tuple[str, ...]) -> tuple[list[float], list[float]]:
        torch._dynamo.reset()
        losses, validations = [], []
        with build(Settings(workload=workload, rungs=rungs), device) as step:
            for number, count in enumerate((3, 3, 1, 1, 2, 3, 3)):
                batches = micro_batches(count, number, step.target)
                total = step.backward(batches, seeds=[100 * number + i for i in range(count)])
                losses += [total.item(), step.update().item()]
                if number in (2, 5):
                    with step.evaluating():
                        collected = [step.forward(*batch) for batch in micro_batches(3, 77, step.target)]
                    validations += torch.stack(collected).tolist()
        return losses, validations

    (expected, expected_validations), (found, validations) = run(("compile", *more)), run((*RUNGS, *more))
    assert found == pytest.approx(expected, rel=1e-3) and validations == pytest.approx(expected_validations, rel=1e-3)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
