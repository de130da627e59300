"""Writing text: the model's own distribution, cut and cooled as asked."""

import math

import pytest
import torch
from torch import nn

from model import GPT2, GPT2Config
from model.generate import generate


class Fixed(nn.Module):
    """Whatever came before, the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits, self.config = torch.tensor(logits), GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=4, vocab_size=4)
        self.longest = 0

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        self.longest = max(self.longest, idx.shape[1])
        return self.logits.expand(*idx.shape, -1)


def counts(model: nn.Module, **how) -> torch.Tensor:
    start = torch.zeros(2000, 1, dtype=torch.int64)
    (drawn,) = generate(model, start, num_tokens=1, generator=torch.Generator().manual_seed(0), **how)
    return torch.bincount(drawn, minlength=4) / 2000


def test_tokens_come_as_often_as_the_model_says() -> None:
    model = Fixed([math.log(p) for p in (0.5, 0.3, 0.15, 0.05)])
    assert counts(model).tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert counts(model, temperature=0.5).tolist() == pytest.approx((squared / squared.sum()).tolist(), abs=0.04)
    assert counts(model, top_k=2).tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert counts(model, temperature=0.0).tolist() == [1, 0, 0, 0]


def test_the_context_is_cut_to_what_the_model_holds() -> None:
    model = Fixed([0.0, 0.0, 0.0, 1.0])
    drawn = list(generate(model, torch.zeros(1, 7, dtype=torch.int64), num_tokens=5, temperature=0.0))
    assert [int(t) for t in drawn] == [3] * 5 and model.longest == 4


def test_the_same_seed_writes_the_same_text() -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=11)).eval()

    def text(seed: int) -> list[int]:
        start = torch.zeros(1, 1, dtype=torch.int64)
        return [int(t) for t in generate(model, start, num_tokens=20, generator=torch.Generator().manual_seed(seed))]

    assert text(1) == text(1) != text(2)
