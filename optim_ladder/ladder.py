"""The ladder: the one ordered list of optimizations, and looking things up in it."""

import difflib
from collections.abc import Iterable

from optim_ladder.rung import Rung
from optim_ladder.rungs import (
    bf16,
    bf16_weights,
    checkpointing,
    chunked_cross_entropy,
    compile,
    cuda_graphs,
    cudnn_attention,
    ddp,
    efficient_attention,
    flash,
    flex_attention,
    fp8,
    fp8_static,
    fp16,
    fused_adamw,
    max_autotune,
    padded_vocab,
    tf32,
    triton_adamw,
    triton_attention,
    triton_bias_gelu,
    triton_cross_entropy,
    triton_layer_norm,
    triton_mlp,
)

# Topological: a rung stands after what it needs. Within a slot the later rung takes over. To add an optimization, add its
# file under rungs/ and its line here.
LADDER: tuple[Rung, ...] = (
    tf32.RUNG,
    bf16.RUNG,
    fp16.RUNG,
    compile.RUNG,
    efficient_attention.RUNG,
    flash.RUNG,
    flex_attention.RUNG,
    triton_attention.RUNG,
    cudnn_attention.RUNG,
    padded_vocab.RUNG,
    triton_cross_entropy.RUNG,
    chunked_cross_entropy.RUNG,
    triton_layer_norm.RUNG,
    triton_bias_gelu.RUNG,
    triton_mlp.RUNG,
    fused_adamw.RUNG,
    triton_adamw.RUNG,
    bf16_weights.RUNG,
    fp8.RUNG,
    fp8_static.RUNG,
    checkpointing.RUNG,
    max_autotune.RUNG,  # late: from here on every setting is compiled anew for minutes
    cuda_graphs.RUNG,
    ddp.RUNG,
)

# Where no rungs are named: all that do not stand aside.
DEFAULT: tuple[Rung, ...] = tuple(rung for rung in LADDER if not rung.aside)


def unknown(kind: str, value: str, choices: Iterable[str]) -> ValueError:
    """The error for a name that is none of the choices, with the nearest one suggested."""
    choices = list(choices)
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {kind} {value!r}: {hint}choose from {', '.join(choices)}")


def rung(name: str) -> Rung:
    """The rung of that name.

    Raises:
        ValueError: there is none; names the choices and suggests the nearest.
    """
    for candidate in LADDER:
        if candidate.name == name:
            return candidate
    raise unknown("rung", name, (candidate.name for candidate in LADDER))


def in_order(names: Iterable[str]) -> tuple[Rung, ...]:
    """The named rungs in ladder order, duplicates dropped.

    Raises:
        ValueError: a name is unknown.
    """
    wanted = {rung(name).name for name in names}
    return tuple(candidate for candidate in LADDER if candidate.name in wanted)


def meets(rungs: Iterable[Rung], need: str) -> bool:
    """Whether a need is met: by the rung itself, or by one that took over its slot."""
    slot = rung(need).slot
    return any(r.name == need or (slot is not None and r.slot == slot) for r in rungs)
