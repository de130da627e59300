"""Attention from a template that the compiler fills in: PyTorch's FlexAttention with a causal block mask.

The compiler generates a fused kernel, tiles and running softmax as in `flash`, around a rule given in Python: here,
that no token sees a later one. Tiles of scores that the rule leaves empty are skipped, tiles that it leaves whole are
not masked (`model/flex.py`). What it is for is attention that no library has a kernel for. Plain causal attention is
the case that all others are tuned for, and about nine tenths of FlashAttention's speed is what its authors report
there. It is on the ladder to be measured, and gives way to the next.

It needs `compile`: without it all (T, T) scores would be held in memory, so what is not compiled, sampling, takes
SDPA. `max_autotune` looks for its tile sizes too. Sequences are multiples of 128 tokens; no dropout; no backward pass
on processors.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from hardware import Device
from model import GPT2Config
from optim_ladder.rung import REORDERED, Rung

if TYPE_CHECKING:
    from optim_ladder.settings import Workload

HEAD_SIZES = (32, 64, 128)  # powers of two, of which the template's tiles are made
TILE = 128  # of `model.flex`, which is slow to import


def unavailable(device: Device, workload: "Workload") -> str | None:
    if not workload.is_transformer:
        return f"the model {workload.model} has no attention"
    if workload.has_dropout:
        return "FlexAttention has no dropout, and this model uses it"
    config = workload.model_config()
    if (head_size := config.n_embd // config.n_head) not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        return f"FlexAttention is used here with head sizes {sizes}; this model has {head_size}"
    if workload.seq_len % TILE:
        return f"FlexAttention is used here with multiples of {TILE} tokens; the sequences have {workload.seq_len}"
    if device.kind != "cuda" or device.capability is None or device.capability < (8, 0):
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    return None


def use_flex(config: GPT2Config) -> GPT2Config:
    return replace(config, attention="flex")


RUNG = Rung(
    name="flex_attention",
    title="FlexAttention",
    source="https://arxiv.org/abs/2412.05496",
    essay=__doc__,
    drift=REORDERED,
    needs=("compile",),
    slot="attention",
    unavailable=unavailable,
    model_config=use_flex,
)
