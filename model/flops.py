"""How many floating-point operations one trained token costs, by formula and by counting.

Two conventions are in use, and both are printed by name:

    full     6N + 12·L·H·Q·T   every matrix product at its full size; N without the position table.
    causal   6N +  6·L·H·Q·T   the attention products counted half, because half of the (T, T) matrix is masked.

Q is the head size, so H·Q = C. 6N is 2 for the forward product and 4 for the two backward ones, per parameter.
`counted` asks PyTorch's dispatcher instead, on the meta device, where shapes exist and numbers do not.

Source: Chowdhery et al., "PaLM" (2022), appendix B, for the formula.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.gpt2 import GPT2, GPT2Config
from model.models import ModelConfig, create


def num_parameters(config: ModelConfig, *, positions: bool = True) -> int:
    """Parameters of a model of this shape, without making it; see `GPT2.num_parameters`."""
    with torch.device("meta"):
        return create(config).num_parameters(positions=positions)


def flops_per_token(config: GPT2Config, seq_len: int) -> dict[str, float]:
    """FLOPs of one optimizer step per token, forward and backward.

    Args:
        config: the model's shape; vocabulary padding is not counted as useful work.
        seq_len: T.

    Returns:
        ``{"full": …, "causal": …, "counted": …}``: the two conventions, and `FlopCounterMode`'s count of the matrix
        products of the eager reference (attention in full, biases and norms not counted).
    """
    dense = 6 * num_parameters(config, positions=False)
    attention = 12 * config.n_layer * config.n_embd * seq_len
    return {
        "full": float(dense + attention),
        "causal": float(dense + attention / 2),
        "counted": counted_flops(config, seq_len) / seq_len,
    }


def counted_flops(config: GPT2Config, seq_len: int) -> int:
    """FLOPs of the matrix products in one forward and backward pass over one sequence of ``seq_len`` tokens."""
    with torch.device("meta"):
        model = GPT2(config)
        idx = torch.zeros(1, seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx).backward()
    return counter.get_total_flops()
