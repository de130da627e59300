"""Keep only what enters each block, and compute the rest again when the backward pass comes to it.

Between the passes a training step holds every activation that a gradient will need: for GPT-2 some 17 numbers per
channel and token in each block, and with attention written out the scores as well. On a small card that, and not the
weights, decides how large a micro-batch can be. With this rung a block keeps its inputs, 2 of those 17. When the
backward pass comes to it, it runs its forward pass once more, with the same dropout, so that every gradient is the
same.

It costs time: a third more arithmetic in the blocks; the head, with a large vocabulary a third of the work of a small
model, is not computed twice. It pays where the larger micro-batch it makes room for gains more, or where nothing fits
without it. So it stands aside from the ladder: name it, and let `stepladder tune` find the micro-batch. `compile` is
told of it and does the same within its graphs. One thing differs there: the dropout inside PyTorch's fused attention
kernels on a GPU, the same in both forward passes, comes from a generator that no seed of ours reaches, so that a run
that is taken up again does not repeat it bit by bit.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from hardware import Device
from model import GPT2Config
from optim_ladder.rung import REORDERED, Rung

if TYPE_CHECKING:
    from optim_ladder.settings import Workload


def unavailable(device: Device, workload: "Workload") -> str | None:
    if not workload.is_transformer:
        return f"the model {workload.model} has no transformer blocks"
    return None


def recompute(config: GPT2Config) -> GPT2Config:
    return replace(config, recompute=True)


RUNG = Rung(
    name="checkpointing",
    title="activation checkpointing",
    source="https://arxiv.org/abs/1604.06174",
    essay=__doc__,
    drift=REORDERED,
    aside=True,
    unavailable=unavailable,
    model_config=recompute,
)
