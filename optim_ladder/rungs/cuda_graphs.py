"""Record the compiled forward and backward pass once, and replay each with a single launch.

A compiled step of GPT-2 still launches some hundreds of kernels, one after another, from the host. Each launch takes
a few microseconds; where the kernels themselves are that short (small models, small micro-batches, fast cards), the
device waits for the host. A CUDA graph holds the whole sequence with all its addresses, and the driver replays it by
itself. At a micro-batch of 1 or 2 up to half of a step's time has been reported, at large ones nothing, or a little
lost. Clipping and the optimizer stay outside: they are a few launches where `triton_adamw` is on.

A replay writes to the same memory every time, and that is what it costs in care. The loss is copied out, so that it
can be read after the next pass has begun, and so that a validation can collect many. With gradient accumulation,
gradients of the micro-batch before lie in memory that the next replay writes to: they are moved to buffers of their
own, once per step, to which autograd then adds in place; that is a copy of all gradients more in memory. Activations
come from a memory pool of the graphs' own. The first two steps of every shape are slow: one in which everything is
allocated, one that is recorded.

What cannot be recorded is an error, never a silent return to launching one by one. Joined processes are left out:
between graphs, DistributedDataParallel sends gradients on a stream of its own, and PyTorch has open reports of that
failing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hardware import Device
from optim_ladder.rung import REORDERED, Rung

if TYPE_CHECKING:
    from optim_ladder.settings import Workload


def recording(device: Device) -> AbstractContextManager:
    """The compiler makes graphs of what it compiles meanwhile, or says that it cannot."""
    from torch._inductor import config

    # Partitions would leave what cannot be recorded outside of the graphs and launch it one by one, without a word.
    whole = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True, "graph_partition": False}
    return config.patch(whole)


def outliving(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Loss and gradients that are still there when the module is called again.

    Args:
        module: (idx, targets) -> loss; each call may write over what the one before has given, gradients included.

    Returns:
        The same function.
    """
    parameters = list(module.parameters())
    buffers: dict[nn.Parameter, Tensor] = {}

    def replay(idx: Tensor, targets: Tensor) -> Tensor:
        # Gradients of an earlier micro-batch; once moved, autograd adds to the buffers, which are none of the graph's.
        moving = [p for p in parameters if p.grad is not None and p.grad is not buffers.get(p)]
        if moving:
            for p in moving:
                buffers.setdefault(p, torch.empty_like(p.grad))
            torch._foreach_copy_([buffers[p] for p in moving], [p.grad for p in moving])
            for p in moving:
                p.grad = buffers[p]
        torch.compiler.cudagraph_mark_step_begin()
        return module(idx, targets).clone()

    return replay


def unavailable(device: Device, workload: "Workload") -> str | None:
    if device.kind != "cuda":
        return "CUDA graphs are for NVIDIA GPUs"
    if workload.world_size > 1:
        return "gradients shared between processes are not recorded reliably; one process can have it"
    return None


RUNG = Rung(
    name="cuda_graphs",
    title="CUDA graphs",
    source="https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html",
    essay=__doc__,
    drift=REORDERED,
    needs=("compile",),
    unavailable=unavailable,
    process=recording,
    compile=outliving,
)
