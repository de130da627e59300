"""Let fp32 matrix products run on the tensor cores in TF32.

An fp32 product on an NVIDIA GPU before Ampere, or at PyTorch's default precision, runs on the ordinary cores. TF32 rounds
the operands to 10 bits of mantissa, keeps fp32's range and sums in fp32; the tensor cores then do it about 8 times
faster, with no change to any tensor's type. It is one process-wide flag.

It helps only products that are still in fp32: once `bf16` is on, nothing is left for it. Measure it with
`--derive single`, and look at `--derive leave-one-out` to see that it is worth nothing at the top.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hardware import Device
from optim_ladder.rung import Drift, Rung


@contextmanager
def high_precision_matmul(device: Device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def unavailable(device: Device, workload: object) -> str | None:
    if not device.supports("tf32"):
        return "needs the tensor cores of an NVIDIA GPU of compute capability 8.0 or newer"
    return None


RUNG = Rung(
    name="tf32",
    title="TF32 matmul",
    source="https://docs.pytorch.org/docs/stable/notes/cuda.html#tf32-on-ampere",
    essay=__doc__,
    drift=Drift(loss=5e-3, gradient=3e-2, norm=5e-3),
    precision="tf32",
    unavailable=unavailable,
    process=high_precision_matmul,
)
