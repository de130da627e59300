"""Writing text: one token after another, each drawn from the model's own distribution."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    idx: Tensor,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yields one new token per sequence at a time.

    A context longer than the model's position table is cut to its last part.

    Args:
        model: ``model(idx)`` gives (B, T, V) logits; in evaluation mode if dropout is to rest.
        idx: (B, T) int64, T >= 1: what to go on from.
        num_tokens: how many to draw.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest only; 0 draws from all.
        generator: on the CPU; the same state draws the same tokens on any device that computes the same logits.

    Yields:
        (B,) int64.

    Raises:
        ValueError: a logit is not finite.
    """
    for _ in range(num_tokens):
        idx = idx[:, -model.config.n_positions :]
        logits = model(idx)[:, -1].float()  # (B, V)
        if not logits.isfinite().all():
            raise ValueError("the model's logits are no numbers: its weights have diverged; use an earlier checkpoint")
        if temperature == 0.0:
            drawn = logits.argmax(-1)
        else:
            # The largest becomes 0 first: however cold, nothing overflows.
            logits = (logits - logits.max(-1, keepdim=True).values) / temperature
            if 0 < top_k < logits.shape[-1]:
                smallest = logits.topk(top_k).values[:, -1:]  # (B, 1)
                logits = logits.masked_fill(logits < smallest, float("-inf"))
            drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(idx.device)
        yield drawn
        idx = torch.cat([idx, drawn[:, None]], dim=1)
