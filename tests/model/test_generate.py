"""Writing text: the model's own distribution, cut and cooled as asked, in a window that slides."""

import itertools
import math

import pytest
import torch
from torch import nn

from hardware import detect
from model import GPT2, GPT2Config
from model.generate import (
    Choice,
    Reader,
    _draw,
    _one_ahead,
    capacity,
    choose,
    exponential,
    generate,
    hashed,
    keys,
    window_start,
)


class Fixed(nn.Module):
    """Whatever came before, the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits, self.config = (
            torch.tensor(logits),
            GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=4, vocab_size=4),
        )
        self.longest = 0

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        self.longest = max(self.longest, idx.shape[1])
        return self.logits.expand(*idx.shape, -1)


class Numbered(nn.Module):
    """Token after token the number of tokens it sees, so that what it saw can be read off."""

    def __init__(self, n_positions: int = 4) -> None:
        super().__init__()
        self.config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=n_positions, vocab_size=64)
        self.seen: list[list[int]] = []

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        self.seen.append(idx[0].tolist())
        return nn.functional.one_hot(idx + 1, 64).float()


def counts(model: nn.Module, **how) -> torch.Tensor:
    start = torch.zeros(2000, 1, dtype=torch.int64)
    (drawn,) = generate(model, start, num_tokens=1, generator=torch.Generator().manual_seed(0), **how)
    return torch.bincount(drawn, minlength=4) / 2000


PROBABILITIES = (0.5, 0.3, 0.15, 0.05)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, (0.6849, 0.2466, 0.0616, 0.0068)),
        ({"temperature": 0.0}, (1, 0, 0, 0)),
        ({"temperature": 1e-30}, (1, 0, 0, 0)),
        ({"top_k": 2}, (0.625, 0.375, 0, 0)),
        ({"top_k": 4}, PROBABILITIES),
        ({"top_k": 99}, PROBABILITIES),
        ({"top_p": 0.79}, (0.625, 0.375, 0, 0)),
        ({"top_p": 0.81}, (0.5263, 0.3158, 0.1579, 0)),
        ({"top_p": 1e-9}, (1, 0, 0, 0)),
        # Of the three likeliest, 0.526 0.316 0.158, the first two have 0.842.
        ({"top_k": 3, "top_p": 0.84}, (0.625, 0.375, 0, 0)),
        ({"top_k": 3, "top_p": 0.85}, (0.5263, 0.3158, 0.1579, 0)),
        ({"top_k": 1, "top_p": 0.99}, (1, 0, 0, 0)),
        # Cooled first: the first then has 0.6849.
        ({"temperature": 0.5, "top_p": 0.7}, (0.7353, 0.2647, 0, 0)),
    ],
)
def test_tokens_come_as_often_as_they_should(how: dict, expected: tuple) -> None:
    model = Fixed([math.log(p) for p in PROBABILITIES])
    found = counts(model, **how)
    assert found.tolist() == pytest.approx(expected, abs=0.04)
    assert [f == 0 for f in found] == [e == 0 for e in expected], "a token that was cut off was drawn"


def test_equal_logits_are_drawn_equally_often_and_none_is_left_out() -> None:
    assert counts(Fixed([1.0] * 4)).tolist() == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize(
    "how", [{"top_k": 5}, {"top_p": 0.05}, {"top_k": 40, "top_p": 0.2}, {"temperature": 30.0, "top_k": 5}]
)
def test_what_was_cut_off_is_never_drawn(how: dict) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    (key,) = keys(1, 20_000, torch.Generator().manual_seed(0))
    drawn = choose(logits.expand(20_000, -1), key, Choice(**how)).unique()
    cooled = (logits / how.get("temperature", 1.0)).sort(descending=True)
    kept = cooled.values[: how.get("top_k", 300)].softmax(0)
    allowed = int(((kept.cumsum(0) - kept) < how.get("top_p", 1.0)).sum())
    assert sorted(drawn.tolist()) == sorted(cooled.indices[:allowed].tolist())


def test_the_race_is_fair() -> None:
    """Each number has the exponential distribution's mean, spread and tails, and nothing to do with its neighbours."""
    numbers = exponential(torch.arange(400), 5000)  # (keys, ids)
    assert numbers.min() > 0 and float(numbers.mean()) == pytest.approx(1.0, abs=4 / 2e6**0.5)
    assert float(numbers.var()) == pytest.approx(1.0, abs=0.02)
    for x in (0.01, 0.5, 3.0, 8.0):
        assert float((numbers > x).float().mean()) == pytest.approx(math.exp(-x), abs=4 * (math.exp(-x) / 2e6) ** 0.5)
    centred = numbers - 1.0
    for one, other in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1]), (centred[:200], centred[200:])):
        assert abs(float((one * other).mean())) < 4 / one.numel() ** 0.5


def test_the_numbers_never_change() -> None:
    """A seed in somebody's notes shall write the same text with the next version, and on another device."""
    assert hashed(torch.tensor([0, 1, 2**32 - 1])).tolist() == [0, 824515495, 539527247]
    assert exponential(torch.tensor([12345]), 4)[0].tolist() == pytest.approx(
        [1.4768076, 0.2826500, 0.0927303, 2.5492392], rel=1e-5
    )
    device = detect().torch_device()
    there = exponential(torch.tensor([7, 8], device=device), 5000).cpu()
    torch.testing.assert_close(there, exponential(torch.tensor([7, 8]), 5000), rtol=1e-5, atol=0)


def unhashed(x: int) -> int:
    """What `hashed` makes this number of."""
    inverse = pow(0x45D9F3B, -1, 2**32)
    for _ in range(2):
        x = ((x ^ (x >> 16)) * inverse) & 0xFFFFFFFF
    return x ^ (x >> 16)


def test_the_last_one_left_wins_however_late_it_comes() -> None:
    """The largest random number would be rounded to a time without end, in which all that was cut off comes in too."""
    late = unhashed(unhashed(2**32 - 1) ^ int(hashed(torch.tensor(3))))
    numbers = exponential(torch.tensor([late]), 4)
    assert numbers.isfinite().all() and numbers.argmax() == 3
    for how in ({"top_k": 1}, {"top_p": 0.5}):
        assert choose(torch.tensor([[0.0, 0.0, 0.0, 9.0]]), torch.tensor([late]), Choice(**how)).tolist() == [3]


def test_a_rounding_error_hardly_ever_draws_another_token() -> None:
    """As cached and uncached logits differ: 512 tokens of a model that knows nothing, over GPT-2's whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    others = 0
    for _ in range(8):
        logits = 0.5 * torch.randn(64, 50257, generator=generator)
        (key,) = keys(1, 64, generator)
        others += int(
            (
                choose(logits, key, Choice())
                != choose(logits + 2e-6 * torch.randn(logits.shape, generator=generator), key, Choice())
            ).sum()
        )
    assert others == 0


def test_a_token_outside_the_vocabulary_is_never_drawn() -> None:
    """Padding rows of the embedding may hold anything: their columns are not among the logits."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=11, padded_vocab_size=64)).eval()
    model.wte.weight.data[11:] = 100.0
    start = torch.zeros(500, 2, dtype=torch.int64)
    assert max(int(t.max()) for t in generate(model, start, num_tokens=3, temperature=5.0)) == 10


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0"),
        ({"temperature": math.nan}, "temperature is nan; it must be 0"),
        ({"temperature": math.inf}, "temperature is inf; it must be 0"),
        ({"top_k": -1}, "top_k is -1; it must be 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must lie in"),
        ({"top_p": 1.01}, "top_p is 1.01; it must lie in"),
        ({"top_p": math.nan}, "top_p is nan; it must lie in"),
        ({"slide": 0}, "slide is 0; it must be from 1 to the model's 4 positions"),
        ({"slide": 5}, "slide is 5; it must be from 1 to the model's 4 positions"),
    ],
)
def test_a_number_out_of_range_is_one_clear_line(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        next(generate(Fixed([0.0] * 4), torch.zeros(1, 1, dtype=torch.int64), num_tokens=1, **wrong))


@pytest.mark.parametrize("how", [{}, {"temperature": 0.0}, {"top_k": 2, "top_p": 0.5}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float, how: dict) -> None:
    with pytest.raises(ValueError, match="its weights have diverged"):
        next(generate(Fixed([0.0, value, 1.0, 2.0]), torch.zeros(2, 1, dtype=torch.int64), num_tokens=1, **how))


def test_reading_on_after_no_number_is_no_crash() -> None:
    """A GPU has begun with the next token, here with a window that slides, before anyone has looked at this one."""
    model = GPT2(GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=4, vocab_size=5)).eval()
    with torch.no_grad():
        model.wte.weight[0] = math.nan
        drawn = _draw(Reader(model), torch.ones(1, 4, dtype=torch.int64), iter(keys(3, 1, None)), Choice(), 1)
        assert [int(token) for token in drawn] == [-1] * 3


def test_what_has_left_the_window_is_not_carried_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else writing a long text would copy all of it for every token."""
    widths, honest = [], torch.cat
    monkeypatch.setattr(torch, "cat", lambda tensors, dim: widths.append(made := honest(tensors, dim)) or made)
    for slide in (1, 3):
        assert len(list(generate(Numbered(), torch.tensor([[0]]), num_tokens=60, temperature=0.0, slide=slide))) == 60
    assert max(made.shape[1] for made in widths) == 5


def test_the_context_is_cut_to_what_the_model_holds() -> None:
    model = Fixed([0.0, 0.0, 0.0, 1.0])
    drawn = list(generate(model, torch.zeros(1, 7, dtype=torch.int64), num_tokens=5, temperature=0.0))
    assert [int(t) for t in drawn] == [3] * 5 and model.longest == 4


def test_the_window_holds_the_last_tokens() -> None:
    model = Numbered()
    list(generate(model, torch.tensor([[0]]), num_tokens=7, temperature=0.0))
    assert model.seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]


def test_a_window_that_slides_further_at_a_time() -> None:
    model = Numbered()
    list(generate(model, torch.tensor([[0]]), num_tokens=8, temperature=0.0, slide=3))
    assert [seen[0] for seen in model.seen] == [0, 0, 0, 0, 3, 3, 3, 6] and max(map(len, model.seen)) == 4
    assert all(seen[-1] == i for i, seen in enumerate(model.seen))  # the newest token is always in it


@pytest.mark.parametrize("slide", [1, 2, 3, 5, 8])
def test_a_window_is_never_empty_nor_too_long_nor_beyond_its_capacity(slide: int) -> None:
    n = 8
    for length, num_tokens in itertools.product(range(1, 40), (1, 2, 7, 30)):
        room = capacity(length, num_tokens, n, slide)
        for now in range(length, length + num_tokens):
            assert 1 <= now - window_start(now, n, slide) <= min(n, room)


def test_the_same_seed_writes_the_same_text() -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=11)).eval()

    def text(seed: int) -> list[int]:
        start = torch.zeros(1, 1, dtype=torch.int64)
        return [int(t) for t in generate(model, start, num_tokens=20, generator=torch.Generator().manual_seed(seed))]

    assert text(1) == text(1) != text(2)


def test_sequences_of_a_batch_are_drawn_apart() -> None:
    drawn = torch.stack(list(generate(Fixed([0.0] * 4), torch.zeros(8, 1, dtype=torch.int64), num_tokens=16)))
    assert len({tuple(column.tolist()) for column in drawn.T}) == 8


def test_looking_one_ahead_changes_nothing_but_the_moment() -> None:
    made = []

    def numbers():
        for i in range(3):
            made.append(i)
            yield i

    ahead = _one_ahead(numbers())
    assert next(ahead) == 0 and made == [0, 1]
    assert list(ahead) == [1, 2] and list(_one_ahead(iter(()))) == []


def test_rewinding_forgets_the_rest() -> None:
    reader = Reader(Numbered())
    reader.begin(torch.tensor([[5, 6, 7]]))
    reader.rewind(1)
    reader.step(torch.tensor([9]), torch.zeros(1, dtype=torch.int64), Choice())
    assert reader.model.seen[-1] == [5, 9] and reader.length == 2
