"""Run the forward pass in bfloat16 under autocast.

bfloat16 has fp32's exponent and 7 bits of mantissa. Matrix products read half the bytes and run on units that are 2 times
faster than TF32's and 16 times faster than fp32's on a datacenter GPU; activations kept for the backward pass take half the
memory. Autocast picks the type per operation: products in bf16, softmax, layer norm and the loss in fp32. Weights, gradients
and the optimizer stay in fp32. Because the exponent range is fp32's, no gradient scaling is needed.

It costs a cast of every weight per forward pass, and precision: the loss moves in its third decimal. On a CPU without bf16
instructions it is emulated and slower than fp32.
"""

from contextlib import AbstractContextManager

import torch

from hardware import Device
from optim_ladder.rung import Drift, Rung


def autocast(device: Device) -> AbstractContextManager:
    return torch.autocast(device.kind, torch.bfloat16)


def unavailable(device: Device, workload: object) -> str | None:
    if not device.supports("bf16"):
        return "this GPU has no bf16 arithmetic (compute capability 8.0 or newer has); fp16 is the rung for it"
    return None


RUNG = Rung(
    name="bf16",
    title="bf16 autocast",
    source="https://docs.pytorch.org/docs/stable/amp.html",
    essay=__doc__,
    drift=Drift(loss=1e-2, gradient=5e-2, norm=5e-3),
    slot="precision",
    precision="bf16",
    unavailable=unavailable,
    forward=autocast,
)
