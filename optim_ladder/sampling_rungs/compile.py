"""Compile a whole step: reading a token, filling the cache, drawing the next one.

At one token per step every operation is tiny, and launching them one by one from Python takes longer than running them:
some 300 launches for GPT-2 124M. The compiler fuses what lies between the matrix products, and on an NVIDIA GPU the
step is recorded once as a CUDA graph and replayed with a single launch, which the fixed shapes and addresses of the
static cache allow. On a CPU it becomes a few loops in C++.

The prompt is read without it: its length differs every time, and compiling for each would take longer than reading it.
The price is paid at the first step: up to a minute, seconds when the disk cache has it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hardware import Device
from model.cache import StaticCache
from optim_ladder import compiler
from optim_ladder.rungs.compile import unavailable
from optim_ladder.sampling_rung import SamplingRung


def compiled(reader: StaticCache, device: Device) -> StaticCache:
    if device.kind != "cuda":
        reader.decode = compiler.compiled(reader.decode_one, dynamic=False)
        return reader
    for tensor in (reader.place, *(tensor for pair in reader.kept for tensor in pair)):
        torch._dynamo.mark_static_address(tensor)  # written in place: a graph may only do so to what never moves
    reader.decode = outliving(compiler.compiled(reader.decode_one, mode="reduce-overhead", dynamic=False))
    return reader


def outliving(graph: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A replay writes into the same memory every time; the token must outlive the next one, the logits need not."""

    def replay(*arguments: Any) -> tuple[Tensor, Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        token, logits = graph(*arguments)
        return token.clone(), logits

    return replay


RUNG = SamplingRung(
    name="compile",
    title="torch.compile (+ CUDA graph)",
    source="https://pytorch.org/blog/accelerating-generative-ai-2/",
    essay=__doc__,
    needs=("static_cache",),
    unavailable=unavailable,
    compile=compiled,
)
