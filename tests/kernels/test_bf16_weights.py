"""The flat optimizer under the rung that keeps the model in bfloat16: PyTorch's in its place trains and resumes
alike.
"""

import pytest
import torch
from torch import Tensor

from hardware import detect
from optim_ladder import Settings, TrainStep, Workload, build
from train.state import pack, unpack

HERE = detect("cuda" if torch.cuda.is_available() else "cpu")
WORKLOAD = Workload(model="pico", vocab_size=67, micro_batch=2, seq_len=16)
EXACT = HERE.kind == "cuda"  # the interpreter cuts off where a GPU rounds
OPTIMIZERS = ["triton_adamw", "fused_adamw"]


def of(*rungs: str, seed: int = 7) -> TrainStep:
    return build(Settings(workload=WORKLOAD, rungs=("bf16_weights", *rungs)), HERE, seed=seed)


def losses(step: TrainStep, seeds: range) -> list[float]:
    found = []
    for seed in seeds:
        tokens = torch.randint(67, (2, 2, 17), generator=torch.Generator().manual_seed(seed)).to(step.target)
        found.append(step([(rows[:, :-1], rows[:, 1:]) for rows in tokens])[0].item())
    return found


def copied(tensors: dict) -> dict[str, dict[str, Tensor]]:
    return {part: {name: t.clone() for name, t in named.items()} for part, named in tensors.items()}


def test_both_optimizers_have_one_interface() -> None:
    with of("triton_adamw") as ours, of("fused_adamw") as theirs:
        assert losses(ours, range(4)) == pytest.approx(losses(theirs, range(4)), abs=2e-3)
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert p.dtype == q.dtype == torch.bfloat16
            assert ours.optimizer.state[p].keys() == theirs.optimizer.state[q].keys()
            master = ours.optimizer.state[p]["master"]
            assert (p - master).abs().le(master.abs() * 2.0 ** (-8 if EXACT else -7)).all()


@pytest.mark.parametrize("after", OPTIMIZERS)
@pytest.mark.parametrize("before", OPTIMIZERS)
def test_one_goes_on_where_the_other_was(before: str, after: str) -> None:
    with of(before) as step, of(after, seed=99) as other:
        losses(step, range(3))
        kept = copied(pack(step))
        losses(other, range(40, 42))  # another past, to be forgotten
        unpack(other, kept)
        taken = pack(other)
        for part in ("model", "optimizer"):
            assert all(torch.equal(taken[part][name], tensor) for name, tensor in kept[part].items())
        expected, found = losses(step, range(3, 6)), losses(other, range(3, 6))
        same = before == after and (EXACT or after == "fused_adamw")
        assert found == expected if same else found == pytest.approx(expected, abs=2e-3)
