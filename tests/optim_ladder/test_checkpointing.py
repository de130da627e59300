"""Blocks computed twice: less is kept between the passes, and every gradient is the same, dropout included."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hardware import detect
from model import GPT2, MODELS
from optim_ladder import Settings, TrainStep, Workload, build, rung
from tests.optim_ladder.devices import CPU as ANY_CPU
from tests.optim_ladder.devices import H100

CPU = detect("cpu")
WORKLOAD = Workload(model="pico", vocab_size=67, micro_batch=2, seq_len=32, grad_accumulation=2, dropout=0.2)


def batches() -> list[tuple[Tensor, Tensor]]:
    tokens = torch.randint(67, (2, 2, 33), generator=torch.Generator().manual_seed(0))
    return [(rows[:, :-1], rows[:, 1:]) for rows in tokens]


def gradients(step: TrainStep) -> list[Tensor]:
    """Of two micro-batches with their own dropout."""
    step.backward(batches(), seeds=[1, 2])
    return [p.grad for p in step.model.parameters()]


def of(*rungs: str, workload: Workload = WORKLOAD) -> TrainStep:
    return build(Settings(workload=workload, rungs=rungs), CPU)


@pytest.mark.parametrize("rungs", [(), ("bf16",), ("bf16_weights", "fused_adamw"), ("padded_vocab",)], ids="+".join)
def test_gradients_are_the_same_bit_by_bit(rungs: tuple[str, ...]) -> None:
    with of(*rungs) as plain, of(*rungs, "checkpointing") as again:
        assert not plain.model.config.recompute and again.model.config.recompute
        for expected, found in zip(gradients(plain), gradients(again), strict=True):
            assert torch.equal(found, expected)


def test_dropout_is_not_idle_in_that() -> None:
    with of("checkpointing") as step:
        first = gradients(step)[0].clone()
        step.optimizer.zero_grad()
        step.backward(batches(), seeds=[1, 3])
        assert not torch.equal(step.model.wte.weight.grad, first)


def kept_bytes(model: GPT2, idx: Tensor, targets: Tensor) -> int:
    """What autograd holds between the passes, weights and what is held twice left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(idx, targets)
    loss.backward()
    return sum(held.values())


def test_less_is_kept_between_the_passes() -> None:
    config = replace(WORKLOAD.model_config(), dropout=0.0, attention="sdpa", n_layer=8)
    idx, targets = batches()[0]
    kept = {again: kept_bytes(GPT2(replace(config, recompute=again)), idx, targets) for again in (False, True)}
    stream = 2 * 32 * config.n_embd * 4  # bytes of one (B, T, C)
    in_blocks = {again: kept[again] - kept_outside(config, idx, targets) for again in kept}
    assert in_blocks[False] >= 8 * 14 * stream  # 17 numbers per channel and token by the book
    assert in_blocks[True] <= 8 * 2.1 * stream


def kept_outside(config, idx: Tensor, targets: Tensor) -> int:
    return kept_bytes(GPT2(replace(config, n_layer=1, recompute=True)), idx, targets) - 2 * 2 * 32 * config.n_embd * 4


def test_evaluation_keeps_nothing_and_agrees() -> None:
    with of("checkpointing") as step, of() as plain, step.evaluating(), plain.evaluating():
        assert torch.equal(step.forward(*batches()[0]), plain.forward(*batches()[0]))


def test_compiled_it_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one graph; the random numbers of the compiler's own dropout are drawn again alike."""
    monkeypatch.setitem(MODELS, "pico", replace(MODELS["pico"], n_layer=1))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with of("compile") as plain, of("compile", "checkpointing") as again:
        for expected, found in zip(gradients(plain), gradients(again), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_it_stands_aside_and_is_for_transformers() -> None:
    assert rung("checkpointing").aside
    for device in (ANY_CPU, H100):
        assert rung("checkpointing").unavailable(device, WORKLOAD) is None
        table = Workload(model="char-bigram", vocab_size=65)
        assert "no transformer blocks" in rung("checkpointing").unavailable(device, table)
