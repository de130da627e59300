"""Which workload a device is measured with."""

import pytest

from optim_ladder import profile
from tests.optim_ladder.devices import CPU, gpu


@pytest.mark.parametrize(
    ("name", "expected", "micro_batch"),
    [
        ("NVIDIA GeForce RTX 3070 Laptop GPU", "rtx3070-laptop", 2),
        ("NVIDIA A30", "a30", 8),
        ("NVIDIA A100-SXM4-80GB", "a100", 32),
        ("NVIDIA GeForce RTX 4090", "rtx4090", 16),
        ("NVIDIA GeForce RTX 5090", "rtx5090", 32),
        ("NVIDIA H100 80GB HBM3", "h100", 64),
        ("NVIDIA H200", "h200", 64),
        ("NVIDIA L4", "l4", 8),
        ("Tesla T4", "t4", 4),
    ],
)
def test_a_card_finds_its_profile(name: str, expected: str, micro_batch: int) -> None:
    found, workload = profile(gpu(name, (8, 0)))
    assert (found, workload.micro_batch, workload.seq_len, workload.vocab_size, workload.model) == (
        expected, micro_batch, 1024, 50257, "gpt2",
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["NVIDIA L40S", "NVIDIA A3000", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_a_near_miss_is_sized_from_memory(name: str) -> None:
    found, workload = profile(gpu(name, (8, 9), memory_gib=10))
    assert (found, workload.micro_batch) == ("auto", 4)


@pytest.mark.parametrize(("memory_gib", "micro_batch"), [(4, 1), (8, 2), (12, 4), (24, 8), (48, 16), (80, 32), (288, 64)])
def test_an_unknown_card_gets_what_its_memory_holds(memory_gib: int, micro_batch: int) -> None:
    assert profile(gpu("NVIDIA Future", (12, 0), memory_gib=memory_gib))[1].micro_batch == micro_batch


def test_a_profile_can_be_chosen() -> None:
    assert profile(CPU)[0] == "cpu"
    assert profile(CPU, "a30") == ("a30", profile(gpu("NVIDIA A30", (8, 0)))[1])
    with pytest.raises(ValueError, match="unknown profile 'a300': did you mean 'a30'?"):
        profile(CPU, "a300")
