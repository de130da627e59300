"""Causal attention through PyTorch's FlexAttention: a kernel that the compiler generates around a rule for the mask.

The (T, T) scores are cut into tiles. Left of the diagonal every score counts, on it some do, right of it none, so
tables say which tiles a row or a column of tiles has, and which of them need the rule. For a causal mask they follow
from the number of tiles alone. They are made anew in every layer, from a few numbers: the compiler sees that they are
all the same and makes them once, and need not trace the search through all scores that `create_block_mask` is.

Legend: B micro-batch, T tokens, H heads, D head size, N tiles side by side.

Source: Dong et al., "Flex Attention" (2024), https://arxiv.org/abs/2412.05496.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

TILE = 128


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The rule: which keys a query sees."""
    return query >= key


def causal_tiles(T: int, device: torch.device) -> BlockMask:
    """Which tiles have scores that count, seen from queries and from keys; T is a multiple of `TILE`."""
    n = T // TILE
    tile = torch.arange(n, dtype=torch.int32, device=device)
    own = tile[:, None].expand(n, n)
    tables = {  # how many tiles each row has, and which; those on the diagonal, then the full ones
        "kv_num_blocks": torch.ones_like(tile),
        "kv_indices": own,
        "full_kv_num_blocks": tile,  # those before it
        "full_kv_indices": tile.expand(n, n),
        "q_num_blocks": torch.ones_like(tile),
        "q_indices": own,
        "full_q_num_blocks": n - 1 - tile,  # those after it
        "full_q_indices": (own + 1 + tile) % n,
    }
    tables = {name: table[None, None].contiguous() for name, table in tables.items()}  # (1, 1, N) or (1, 1, N, N)
    return BlockMask(seq_lengths=(T, T), **tables, BLOCK_SIZE=(TILE, TILE), mask_mod=causal)


def causal_attention(qkv: Tensor) -> Tensor:
    """Causal attention in one kernel. It must be compiled: by itself it would hold all scores in memory.

    Args:
        qkv: (B, T, 3, H, D) queries, keys and values.

    Returns:
        (B, T, H, D), the dtype of ``qkv``.

    Raises:
        ValueError: T is no multiple of `TILE`.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
    T = q.shape[-2]
    if T % TILE:
        raise ValueError(f"sequence length is {T}, no multiple of {TILE}, which attention 'flex' needs; choose 'sdpa'")
    return flex_attention(q, k, v, block_mask=causal_tiles(T, q.device)).transpose(1, 2)
