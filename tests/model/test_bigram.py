"""The bigram: a table that learns how often one token follows another."""

import math

import pytest
import torch

from model import MODELS, Bigram, BigramConfig, create


def test_the_loss_is_that_of_its_table() -> None:
    model = Bigram(BigramConfig(vocab_size=3))
    idx, targets = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, -100]])
    assert model(idx, targets).item() == pytest.approx(math.log(3))
    with torch.no_grad():
        model.table[0] = torch.tensor([0.0, math.log(2.0), 0.0])  # 1 follows 0 half of the time
    assert model(idx, targets).item() == pytest.approx((math.log(2) + math.log(3)) / 2)
    assert model(idx).shape == (1, 3, 3) and torch.equal(model(idx)[0, 0], model.table[0])


def test_training_finds_the_counts() -> None:
    """The best table holds the log-frequencies of what follows; its loss is the text's conditional entropy."""
    text = torch.randint(0, 4, (1, 401), generator=torch.Generator().manual_seed(0)) ** 2 % 5  # 0, 1, 4, 4
    idx, targets = text[:, :-1], text[:, 1:]
    model = create(MODELS["char-bigram"].resized(vocab_size=5, seq_len=400))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(idx, targets)
        loss.backward()
        optimizer.step()
    counts = torch.zeros(5, 5).index_put_((idx[0], targets[0]), torch.ones(400), accumulate=True)
    entropy = -(counts * (counts / counts.sum(1, keepdim=True)).log().nan_to_num(neginf=0.0)).nansum() / 400
    assert loss.item() == pytest.approx(entropy.item(), abs=5e-3)


def test_a_bigram_looks_back_once() -> None:
    with pytest.raises(ValueError, match="n_positions is 2"):
        BigramConfig(n_positions=2)
