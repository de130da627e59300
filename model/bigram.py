"""The smallest language model: a table of what follows what.

Row i of a (V, V) table holds the logits of the token after token i. It sees one token back and nothing else, so its best loss is
the conditional entropy of the text's pairs: the floor under which every model with a memory must get.

Legend: B micro-batch, T sequence length, V vocab_size.

Source: Shannon, "A Mathematical Theory of Communication" (1948), section 3, "the series of approximations to English".
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    """Shape of a bigram model.

    Args:
        vocab_size: number of token ids, V.
        n_positions: how many tokens back it looks.
    """

    vocab_size: int = 65
    n_positions: int = 1

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size is {self.vocab_size}; it must be at least 1")
        if self.n_positions != 1:
            raise ValueError(f"n_positions is {self.n_positions}; a bigram looks back at exactly 1 token")

    def resized(self, *, vocab_size: int, seq_len: int) -> "BigramConfig":
        """The same model for another vocabulary; any sequence is short enough."""
        return replace(self, vocab_size=vocab_size)


class Bigram(nn.Module):
    """A (V, V) table of next-token logits, all equal at first."""

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(config.vocab_size, config.vocab_size))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits, or the training loss when targets are given.

        Args:
            idx: (B, T) int64 token ids below ``vocab_size``.
            targets: (B, T) int64 next tokens; -100 marks a position that does not count.

        Returns:
            (B, T, V) logits, or without a batch shape the mean cross-entropy in nats, float32.
        """
        logits = F.embedding(idx, self.table)  # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def num_parameters(self, *, positions: bool = True) -> int:
        """Trained numbers; there are no positions to leave out."""
        return self.table.numel()
