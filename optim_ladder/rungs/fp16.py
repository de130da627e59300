"""Run the forward pass in float16 under autocast, with gradient scaling: mixed precision for cards without bf16.

Turing and Volta tensor cores multiply fp16, not bf16. fp16 has 10 bits of mantissa but only 5 of exponent: gradients below
6e-8 vanish. The loss is therefore multiplied by a large factor before the backward pass and the gradients divided by it
before clipping; a step whose gradients overflowed is skipped and the factor halved.

Where bf16 runs there is no reason to take this instead: the same speed, one more thing that can go wrong.
"""

from contextlib import AbstractContextManager

import torch

from hardware import Device
from optim_ladder.rung import Drift, Rung


def autocast(device: Device) -> AbstractContextManager:
    return torch.autocast(device.kind, torch.float16)


def unavailable(device: Device, workload: object) -> str | None:
    if not device.supports("fp16"):
        return "this device has no fp16 arithmetic"
    if device.supports("bf16"):
        return "this device has bf16, which is as fast and needs no gradient scaling"
    return None


RUNG = Rung(
    name="fp16",
    title="fp16 autocast + gradient scaling",
    source="https://arxiv.org/abs/1710.03740",
    essay=__doc__,
    drift=Drift(loss=1e-2, gradient=5e-2, norm=5e-3),
    slot="precision",
    precision="fp16",
    gradient_scaling=True,
    unavailable=unavailable,
    forward=autocast,
)
