"""Writing text: one token after another, each drawn from the model's own distribution.

    what was read ──> Reader ──> logits ──> choose ──> token ──> read it too

A `Reader` knows a model and what it has read. The one here keeps nothing and reads everything again for every token, as
the formula says; those in `model.cache` remember keys and values and give the same logits.

A model knows `n_positions` places. When a text outgrows them, its oldest tokens leave the window, `slide` of them at a
time. Positions are learned by number, so every token left then stands in another place, and nothing remembered of it
holds: the window is read anew. With slide = 1 the model always sees as much as it can, and every further token costs a
whole pass.

Legend: B sequences, T tokens read, V vocab_size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


KEYS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a token is chosen.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from the k likeliest only; 0 draws from all.
        top_p: of those, draw from the fewest that together have this probability; 1 draws from all.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), for top-p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (the likeliest token) or positive")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or a positive number")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")


def choose(logits: Tensor, key: Tensor, choice: Choice) -> Tensor:
    """Draws a token for every sequence.

    Every id runs a race: its time is exponentially distributed, with its probability as the rate, and the first one
    wins. The times come from a hash of the key and the id, so they are the same on every device, and a rounding error
    in a logit changes the winner only where two arrive almost together.

    Args:
        logits: (B, V), any floating dtype.
        key: (B,) int64 below 2**32, what the random numbers are made from.
        choice: how.

    Returns:
        (B,) int64; -1 where a logit is not finite.

    Source: Gumbel, "Statistical Theory of Extreme Values" (1954), for the race, which is the Gumbel-max trick.
    """
    logits = logits.float()
    finite = logits.isfinite().all(-1)
    if choice.temperature > 0.0:
        # The largest becomes 0 first: however cold, nothing overflows.
        logits = (logits - logits.max(-1, keepdim=True).values) / choice.temperature
        if 0 < choice.top_k < logits.shape[-1]:
            smallest = logits.topk(choice.top_k).values[:, -1:]  # (B, 1)
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        if choice.top_p < 1.0:
            ordered = logits.softmax(-1).sort(-1, descending=True).values
            likelier = ordered.cumsum(-1) - ordered  # together, of the tokens before
            smallest = ordered.masked_fill(likelier >= choice.top_p, float("inf")).min(-1, keepdim=True).values
            logits = logits.masked_fill(logits.softmax(-1) < smallest, float("-inf"))
        logits = logits - exponential(key, logits.shape[-1]).log()
    return torch.where(finite, logits.argmax(-1), -1)


def exponential(key: Tensor, count: int) -> Tensor:
    """(B, count) exponentially distributed numbers from a (B,) int64 key below 2**32, the same on every device."""
    ids = torch.arange(count, device=key.device)
    bits = hashed(hashed(ids) ^ hashed(key)[:, None])  # (B, count)
    # The largest would be rounded to 1, which takes for ever: then what was cut off would win.
    return -torch.log1p(-((bits.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24))


def hashed(x: Tensor) -> Tensor:
    """Mixes 32-bit numbers, kept in int64, one to one.

    Source: Mueller, "hash-prospector" (https://github.com/skeeto/hash-prospector), 32 bits.
    """
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def keys(count: int, batch: int, generator: torch.Generator | None) -> Tensor:
    """(count, batch) keys for `choose`, one for each token of each sequence.

    Args:
        generator: on the CPU; None is torch's global one.
    """
    return torch.randint(2**32, (count, batch), generator=generator)


class Reader:
    """Reads text with a model and says what may come next. This one keeps nothing: for every token it reads all again.

    Args:
        model: ``model(idx)`` gives (B, T, V) logits; in evaluation mode if dropout is to rest.

    Attributes:
        length: tokens read.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.idx: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.idx is None else self.idx.shape[1]

    @property
    def bytes_kept(self) -> int:
        """Of what it remembers, read again for every token."""
        return 0

    def begin(self, idx: Tensor) -> Tensor:
        """Forgets what was read, and reads a text.

        Args:
            idx: (B, T) int64, 1 <= T <= n_positions.

        Returns:
            (B, V) logits of the token after it.
        """
        self.idx = idx
        return self.model(idx)[:, -1]

    def step(self, token: Tensor, key: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Reads one more token and draws the next.

        Args:
            token: (B,) int64.
            key, choice: see `choose`.

        Returns:
            (B,) the token drawn, and the (B, V) logits it was drawn from, which hold until the next call.
        """
        self.idx = torch.cat([self.idx, token[:, None]], dim=1)
        logits = self.model(self.idx)[:, -1]
        return choose(logits, key, choice), logits

    def rewind(self, length: int) -> None:
        """Forgets all but the first tokens read."""
        self.idx = self.idx[:, :length]


def window_start(length: int, n_positions: int, slide: int) -> int:
    """The first token a model still sees of a text: 0 while it fits, then a multiple of ``slide`` further on."""
    return max(0, -(-(length - n_positions) // slide)) * slide


def capacity(length: int, num_tokens: int, n_positions: int, slide: int = 1) -> int:
    """The most tokens in the window at any time, while ``num_tokens`` are written after ``length``."""
    return min(n_positions, length - window_start(length, n_positions, slide) + num_tokens)


def generate(
    model: nn.Module | Reader,
    idx: Tensor,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    slide: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Writes one new token per sequence at a time.

    Args:
        model: a model, or a `Reader` of one.
        idx: (B, T) int64, T >= 1: what to go on from; of a longer text than the model can see, its last part counts.
        num_tokens: how many to draw.
        temperature, top_k, top_p: see `Choice`.
        slide: how many of the oldest tokens leave the window at a time when it is full, 1 to n_positions.
        generator: on the CPU; the same state draws the same tokens on any device that computes the same logits.

    Returns:
        An iterator of (B,) int64. It raises ValueError where a logit is not finite.

    Raises:
        ValueError: a number is out of range.
    """
    reader = model if isinstance(model, Reader) else Reader(model)
    choice = Choice(temperature=temperature, top_k=top_k, top_p=top_p)
    most = reader.model.config.n_positions
    if not 1 <= slide <= most:
        raise ValueError(f"slide is {slide}; it must be from 1 to the model's {most} positions")
    tokens = _draw(reader, idx, _keys(num_tokens, idx, generator), choice, slide)
    return _only_tokens(_one_ahead(tokens) if idx.is_cuda else tokens)


@torch.no_grad()
def _only_tokens(tokens: Iterator[Tensor]) -> Iterator[Tensor]:
    """Raises ValueError instead of what is none."""
    for token in tokens:
        if bool((token < 0).any()):
            raise ValueError("the model's logits are no numbers: its weights have diverged; use an earlier checkpoint")
        yield token


def _keys(num_tokens: int, idx: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
    """One (B,) tensor of keys per token, on the text's device, where they are brought many at a time."""
    for begun in range(0, num_tokens, KEYS_AT_ONCE):
        yield from keys(min(KEYS_AT_ONCE, num_tokens - begun), len(idx), generator).to(idx.device)


def _draw(reader: Reader, idx: Tensor, all_keys: Iterator[Tensor], choice: Choice, slide: int) -> Iterator[Tensor]:
    n_positions, length, start, token = reader.model.config.n_positions, idx.shape[1], None, None
    for key in all_keys:
        before, start = start, window_start(length, n_positions, slide)
        if start != before:
            idx = idx[:, start - length :]  # what has left the window is never seen again
            token = choose(reader.begin(idx), key, choice)
        else:
            token, _ = reader.step(token, key, choice)
        yield token
        token = token.clamp(min=0)  # a GPU reads on before anyone has seen that it is none
        idx, length = torch.cat([idx, token[:, None]], dim=1), length + 1


def _one_ahead(tokens: Iterator[Tensor]) -> Iterator[Tensor]:
    """Asks for the next one before handing one out, so that a GPU works while the host reads."""
    held = next(tokens, None)
    for token in tokens:
        yield held
        held = token
    if held is not None:
        yield held
