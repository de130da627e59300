"""Whole training steps with every kernel that has a rung, against the same steps without: 20 steps, within the rungs'
own bounds.

A rung is a kernel's if the interpreter is what makes it available on a processor (on a GPU: if it would be). New ones
join by themselves. What the interpreter costs is each program, however little it computes: the model is the smallest
with two layers, heads and sequences.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.parity import OPTIMIZER, compare, trajectory
from hardware import Device, detect
from model import MODELS, gpt2
from optim_ladder import LADDER, Rung, Settings, Workload, build
from optim_ladder.derive import take_over
from results.schema import Parity

WORKLOAD = Workload(model="pico", vocab_size=101, micro_batch=2, seq_len=12)
NUM_STEPS = 20
HERE = detect("cuda" if torch.cuda.is_available() else "cpu")
PROCESSOR = Device(kind="cpu", name="Test CPU", slug="cpu-test", memory_bytes=2**34, capability=None, count=1)


def kernel_rungs() -> list[Rung]:
    """All on the ladder, told apart by what they say of a processor without the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        able = [r for r in LADDER if not r.unavailable(PROCESSOR, WORKLOAD)]
        patch.delenv("TRITON_INTERPRET")
        return [r for r in able if r.unavailable(PROCESSOR, WORKLOAD)]


KERNEL_RUNGS = kernel_rungs()


def settings_with(rungs: list[Rung], *others: str) -> Settings:
    """These rungs, the later one where two share a slot, with what they need."""
    needed = {need for r in rungs for need in r.needs} | set(others)
    active: tuple[Rung, ...] = ()
    for r in LADDER:
        if r in rungs or r.name in needed:
            active = take_over(active, r)
    return Settings(workload=WORKLOAD, rungs=tuple(r.name for r in active))


def choices() -> list[Settings]:
    """All kernels at once, then each one that shares a slot with a later one."""
    everything = settings_with(KERNEL_RUNGS)
    return [everything, *(settings_with([r]) for r in KERNEL_RUNGS if r.name not in everything.rungs)]


def without_kernels(settings: Settings) -> Settings:
    """Nor the compiler, which is slow to start and has its own tests."""
    kernels = {r.name for r in KERNEL_RUNGS} | {"compile"}
    return Settings(workload=WORKLOAD, rungs=tuple(name for name in settings.rungs if name not in kernels))


def batches(num_steps: int) -> list:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(WORKLOAD.vocab_size, (num_steps, 2, WORKLOAD.seq_len + 1), generator=generator)
    target = HERE.torch_device()
    return [[(rows[:, :-1].to(target), rows[:, 1:].to(target))] for rows in tokens]


def parity(settings: Settings, num_steps: int = NUM_STEPS) -> Parity:
    with build(without_kernels(settings), HERE, optimizer=OPTIMIZER) as step:
        expected = trajectory(step, batches(num_steps))
    with build(settings, HERE, optimizer=OPTIMIZER) as step:
        found = trajectory(step, batches(num_steps))
    return compare(found, expected, settings.drift)


def test_there_are_kernels() -> None:
    assert {"triton_cross_entropy", "chunked_cross_entropy"} <= {r.name for r in KERNEL_RUNGS}


@pytest.mark.parametrize("settings", choices(), ids=lambda s: s.id)
def test_twenty_steps_are_the_same_training(settings: Settings) -> None:
    found = parity(settings)
    assert found.passed and found.steps == NUM_STEPS, found.reason


def test_compiled_steps_are_too_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, WORKLOAD.model, replace(MODELS[WORKLOAD.model], n_layer=1))
    settings = settings_with(KERNEL_RUNGS, "compile", "padded_vocab")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = parity(settings, num_steps=2)
    assert found.passed, found.reason
    assert not torch._dynamo.utils.counters["graph_break"]


def slightly_wrong(right: Callable) -> Callable:
    return lambda *arguments: right(*arguments) * 1.01


def test_a_kernel_that_is_one_percent_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpt2.LOSS, "triton", slightly_wrong(gpt2.LOSS["triton"]))
    found = parity(Settings(workload=WORKLOAD, rungs=("triton_cross_entropy",)), num_steps=1)
    assert not found.passed and "loss differs" in found.reason and "gradient norm differs" in found.reason
