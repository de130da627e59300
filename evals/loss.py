"""Mean loss per token over a fixed set of sequences, the same number however many processes share the work."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

Windows = Iterable[tuple[np.ndarray, np.ndarray, int]]


@torch.no_grad()
def validation_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    windows: Windows,
    *,
    target: torch.device,
    rank: int = 0,
    world_size: int = 1,
    add_up: Callable[[Tensor], object] = lambda tensor: None,
    between: Callable[[], object] = lambda: None,
) -> tuple[float, int]:
    """The token-weighted mean of a loss over batches of sequences.

    Args:
        loss: (idx, targets) -> mean cross-entropy of the targets that count, nats.
        windows: (idx (B, T) int64, targets (B, T) int64 with -100 where none counts, how many count); the same on every process.
        target: device to compute on.
        rank, world_size: this process takes every world_size-th batch.
        add_up: adds a tensor up over the processes, in place.
        between: called before every batch; may raise to end early.

    Returns:
        (nats per token, tokens).

    Raises:
        ValueError: there are no sequences.
    """
    counts, means = [], []
    elsewhere = torch.zeros((), device=target)
    for i, (idx, targets, count) in enumerate(windows):
        between()
        counts.append(count)
        here = i % world_size == rank
        means.append(loss(torch.from_numpy(idx).to(target), torch.from_numpy(targets).to(target)) if here else elsewhere)
    if not counts:
        raise ValueError("there is no text to evaluate on; take a corpus with a validation split, or validation.every=0")
    # One entry per batch, zero where another process has the number: adding them up rounds nothing, and the weighted sum over
    # batches is taken in the same order on every process.
    per_batch = torch.stack(means)
    add_up(per_batch)
    weights = torch.tensor(counts, dtype=torch.float64)
    return float(per_batch.cpu().double() @ weights / weights.sum()), sum(counts)
