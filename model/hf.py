"""GPT-2's weights in Hugging Face's layout, in and out.

The names differ by a prefix (``transformer.``), and the projections by a transpose: OpenAI's release, and Hugging Face
after it, keep them as (in, out), `nn.Linear` as (out, in). Needs no transformers: a mapping of tensors is enough.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.gpt2 import GPT2Config

PREFIX = "transformer."
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored by older releases


def from_hf(state: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """A ``GPT2LMHeadModel`` or ``GPT2Model`` state dict as ours, embedding padded with zero rows where the config asks.

    Args:
        state: name -> tensor, with or without the ``transformer.`` prefix.
        config: the shape the weights must have.

    Returns:
        A state dict for ``GPT2(config).load_state_dict``; tensors are copies.

    Raises:
        ValueError: the embedding table is not (vocab_size, n_embd).
    """
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix(PREFIX)
        if name == "lm_head.weight" or name.endswith(BUFFERS):
            continue
        ours[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).clone(memory_format=torch.contiguous_format)
    wte = ours.get("wte.weight")
    if wte is None or tuple(wte.shape) != (config.vocab_size, config.n_embd):
        found = "missing" if wte is None else str(tuple(wte.shape))
        raise ValueError(f"wte.weight is {found}; this shape needs ({config.vocab_size}, {config.n_embd})")
    padding = wte.new_zeros(config.rows - config.vocab_size, config.n_embd)
    return {**ours, "wte.weight": torch.cat([wte, padding])}


def to_hf(state: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Our state dict in ``GPT2LMHeadModel``'s layout, vocabulary padding dropped; the inverse of `from_hf`."""
    theirs = {}
    for name, tensor in state.items():
        if name == "wte.weight":
            tensor = tensor[: config.vocab_size]
        theirs[PREFIX + name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
    theirs["lm_head.weight"] = theirs[PREFIX + "wte.weight"]
    return theirs
