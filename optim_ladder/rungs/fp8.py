"""Multiply the MLP's and the output head's numbers in 8-bit floating point, in the forward pass.

Tensor cores from Ada and Hopper on multiply e4m3 (4 bits of exponent, 3 of mantissa) twice as fast as bf16. The MLP and
the head do 70 % of GPT-2 124M's matrix arithmetic, and the forward pass a third of that: of 100 ms of a step with 64
sequences on an H100 some 19 are spent in these products, and half of that is the most this rung can win. Attention's
layers and the whole backward pass stay bf16: gradients are spread too widely for 3 bits. They go through the forward
pass's rounding as if there were none, so that what it costs in precision stays noise.

Each token and each output channel has its own scale, found from its largest number in the same pass that casts it
(`kernels/fp8.py` says why), so no number is ever too large. Name it together with `compile`: the casts are passes over
activations and weights that fuse with what wrote them only if the compiler sees both; unfused they eat the gain. For
that reason too `triton_layer_norm`, opaque to the compiler, costs the first cast a pass of its own. An MLP has one
form: this one takes the place of `triton_mlp`. A vocabulary is padded to a multiple of 16, without which tensor cores
cannot load its table.

In what others have published, small GPT-2s gain little or lose (the head alone about 1 %), and record runs use fixed
scales, as `fp8_static` does. It rounds more than any other rung, so it stands aside: name it to have it.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from hardware import Device
from model import GPT2Config
from optim_ladder.rung import Drift, Rung

if TYPE_CHECKING:
    from optim_ladder.settings import Workload

MULTIPLE = 16  # of channels and of rows of the table, for tensor cores


def unavailable(device: Device, workload: "Workload") -> str | None:
    if not workload.is_transformer:
        return f"the model {workload.model} has neither MLP nor output head"
    if device.kind != "cuda":
        return "needs an NVIDIA GPU: elsewhere fp8 arithmetic would only be imitated"
    if not device.supports("fp8"):
        return "this GPU has no fp8 arithmetic (compute capability 8.9 or newer has)"
    if (channels := workload.model_config().n_embd) % MULTIPLE:
        return f"fp8 needs a multiple of {MULTIPLE} channels; this model has {channels}"
    return None


def padded(config: GPT2Config) -> GPT2Config:
    """With rows of the table that tensor cores can load, whether or not `padded_vocab` is on."""
    return replace(config, padded_vocab_size=-(-config.rows // MULTIPLE) * MULTIPLE)


def use_fp8(config: GPT2Config) -> GPT2Config:
    return replace(padded(config), mlp="fp8", head="fp8")


RUNG = Rung(
    name="fp8",
    title="fp8 MLP and head",
    source="https://arxiv.org/abs/2209.05433",
    essay=__doc__,
    # Measured on a CPU: nano 8e-3, 6e-2 and 9e-3 (bf16: 8e-4, 7e-3 and 1e-3); GPT-2 124M's first gradient 8e-2.
    drift=Drift(loss=3e-2, gradient=2e-1, norm=3e-2),
    needs=("bf16",),
    slot="mlp",
    quantised=True,
    aside=True,
    unavailable=unavailable,
    model_config=use_fp8,
)
