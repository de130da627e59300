"""The same fused attention through cuDNN's kernel instead of FlashAttention's.

cuDNN 9 carries attention kernels written for each generation of tensor cores. On Hopper they use its asynchronous matrix
instructions, which the FlashAttention-2 kernel inside PyTorch does not: 1.7 to 2.3 times faster has been reported at training
shapes there, and 0.8 to 1.0 times on older cards. That is why it is a rung of its own, measured on every device, and not a
default. 16-bit types only. Its output is checked against fp32 like every rung's: silent corruption has been reported on
one generation.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hardware import Device
from optim_ladder.rung import REORDERED, Rung
from optim_ladder.rungs import flash

if TYPE_CHECKING:
    from optim_ladder.settings import Workload


def backends(device: Device) -> AbstractContextManager:
    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)


def unavailable(device: Device, workload: "Workload") -> str | None:
    if reason := flash.unavailable(device, workload):
        return reason
    if device.kind != "cuda" or device.capability is None or device.capability < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    if not torch.backends.cudnn.is_available() or (torch.backends.cudnn.version() or 0) < 90000:
        return "needs cuDNN 9 or newer, which this build of PyTorch does not have"
    return None


RUNG = Rung(
    name="cudnn_attention",
    title="cuDNN attention",
    source="https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html",
    essay=__doc__,
    drift=REORDERED,
    needs=("bf16",),
    slot="attention",
    unavailable=unavailable,
    process=backends,
    model_config=flash.use_sdpa,
)
