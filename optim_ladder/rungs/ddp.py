"""Data parallelism: the same model in several processes, each on its own part of the batch, gradients averaged.

Every process runs its micro-batches; the gradients are summed across processes in buckets while the backward pass still
runs, so that the network hides behind arithmetic. One optimizer step sees world_size times the tokens. With gradient
accumulation only the last micro-batch synchronises.

It does not make one GPU faster, so it is charted apart, as scaling: tokens/s in all and per process against one process.
NCCL joins GPUs, gloo CPU processes. On a CPU the processes share the cores, so expect no gain there, only a check.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hardware import Device
from optim_ladder.rung import REORDERED, Rung

if TYPE_CHECKING:
    from optim_ladder.settings import Workload


@contextmanager
def process_group(device: Device) -> Iterator[None]:
    """Joins the processes that torchrun started; one already joined is left as it is."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.kind == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def distribute(module: nn.Module, device: Device) -> nn.Module:
    local = [int(os.environ["LOCAL_RANK"])] if device.kind == "cuda" else None
    return DistributedDataParallel(module, device_ids=local, gradient_as_bucket_view=True)


def unavailable(device: Device, workload: "Workload") -> str | None:
    if workload.world_size == 1:
        return "needs 2 processes or more; this workload has 1"
    if device.kind not in ("cuda", "cpu"):
        return f"PyTorch cannot join processes on {device.kind}"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", workload.world_size))  # of several machines, this one's processes
    if device.count < here:
        unit = "GPUs" if device.kind == "cuda" else "cores"
        return f"needs {here} {unit}; this machine has {device.count}"
    return None


RUNG = Rung(
    name="ddp",
    title="DistributedDataParallel",
    source="https://arxiv.org/abs/2006.15704",
    essay=__doc__,
    drift=REORDERED,
    scaling=True,
    unavailable=unavailable,
    process=process_group,
    parallel=distribute,
)
