"""Attention without the (T, T) matrix through PyTorch's memory-efficient kernel, the oldest of its fused ones.

It works as `flash` does, on tiles with a running softmax, and does the same arithmetic. It is written for more cases:
fp32 as well as 16-bit types, GPUs back to compute capability 5.0, any mask. From Ampere on FlashAttention's kernel,
made for 16-bit types there, is known as the faster one. In fp32 and on older GPUs `flash` runs this same kernel, for
want of another.

It stands below the others of its slot, to show what they add, and because the fastest one on a device is found by
measuring: `--derive choices` puts each into the place of the others.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torch.nn.attention import SDPBackend, sdpa_kernel

from hardware import Device
from optim_ladder.rung import REORDERED, Rung
from optim_ladder.rungs import flash

if TYPE_CHECKING:
    from optim_ladder.settings import Workload


def backends(device: Device) -> AbstractContextManager:
    return sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION)


def unavailable(device: Device, workload: "Workload") -> str | None:
    if reason := flash.unavailable(device, workload):
        return reason
    return None if device.kind == "cuda" else "PyTorch has this kernel for NVIDIA GPUs alone"


RUNG = Rung(
    name="efficient_attention",
    title="memory-efficient attention",
    source="https://arxiv.org/abs/2112.05682",
    essay=__doc__,
    drift=REORDERED,
    slot="attention",
    unavailable=unavailable,
    process=backends,
    model_config=flash.use_sdpa,
)
