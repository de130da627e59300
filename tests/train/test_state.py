"""What a checkpoint holds of a training step: enough to go on bit by bit, and nothing of the rungs it ran with."""

import pytest
import torch

from hardware import detect
from optim_ladder import Settings, TrainStep, Workload, build
from train.state import dropout_seed, pack, template, unpack

CPU = detect("cpu")
WORKLOAD = Workload(model="nano", vocab_size=67, micro_batch=2, seq_len=16)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(67, (2, 17), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def losses(step: TrainStep, seeds: range) -> list[float]:
    return [step([batch(seed)])[0].item() for seed in seeds]


def copied(tensors: dict) -> dict:
    return {part: {name: t.clone() for name, t in named.items()} for part, named in tensors.items()}


@pytest.mark.parametrize("rungs", [(), ("bf16", "fused_adamw"), ("padded_vocab",)], ids="+".join)
def test_training_goes_on_bit_by_bit(rungs: tuple[str, ...]) -> None:
    with build(Settings(workload=WORKLOAD, rungs=rungs), CPU) as step:
        losses(step, range(3))
        kept = copied(pack(step))
        expected = losses(step, range(3, 8))
    with build(Settings(workload=WORKLOAD, rungs=rungs), CPU, seed=99) as other:
        losses(other, range(40, 42))  # another past, to be forgotten
        unpack(other, kept)
        assert losses(other, range(3, 8)) == expected


def test_padding_is_neither_kept_nor_needed() -> None:
    with build(Settings(workload=WORKLOAD, rungs=("padded_vocab",)), CPU) as padded:
        losses(padded, range(3))
        kept = copied(pack(padded))
        expected = losses(padded, range(3, 6))
        assert torch.count_nonzero(padded.model.wte.weight[67:]) == 0
    assert kept["model"]["wte.weight"].shape == kept["optimizer"]["wte.weight.exp_avg"].shape == (67, 256)
    with build(Settings(workload=WORKLOAD, rungs=("fused_adamw",)), CPU) as plain:
        unpack(plain, kept)
        assert losses(plain, range(3, 6)) == pytest.approx(expected, abs=1e-4)


def test_a_template_has_the_shapes_of_what_is_packed() -> None:
    with build(Settings(workload=WORKLOAD), CPU) as step:
        losses(step, range(1))
        packed, expected = pack(step), template(step)
    for part in ("model", "optimizer"):
        assert {n: (t.shape, t.dtype) for n, t in packed[part].items()} == {n: (t.shape, t.dtype) for n, t in expected[part].items()}


def test_tensors_of_another_model_are_refused() -> None:
    with build(Settings(workload=WORKLOAD), CPU) as step:
        losses(step, range(1))
        kept = copied(pack(step))
        kept["model"]["ln_f.bias"] = torch.zeros(3)
        with pytest.raises(ValueError, match=r"model tensor 'ln_f.bias' is \(3,\), this model's \(256,\)"):
            unpack(step, kept)
        del kept["model"]["ln_f.bias"]
        with pytest.raises(ValueError, match="model and this model differ in 'ln_f.bias'"):
            unpack(step, kept)


def test_dropout_seeds_are_all_different() -> None:
    seeds = {dropout_seed(seed, step, micro) for seed in range(3) for step in range(20) for micro in range(8)}
    assert len(seeds) == 3 * 20 * 8 and all(0 <= seed < 2**63 for seed in seeds)
