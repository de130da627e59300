"""One stream of real tokens for a model's vocabulary, prepared once, checked at every use, and batches out of it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import tokenizers
from data.corpora import corpus
from data.dataset import Dataset
from data.prepare import prepare
from data.shards import ShardError


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """A corpus as tokens.

    Args:
        tokens: (num_tokens,) uint16, one stream, an end-of-text id after every document (a newline for bytes).
        info: corpus, corpus_version, tokenizer, tokenizer_vocab_size, tokenizer_sha256, num_tokens, sha256 (of the
            stream, as little-endian bytes).
    """

    tokens: np.ndarray
    info: dict[str, Any]


def load_tokens(vocab_size: int, *, corpora: Path, progress: Callable[[str], object] | None = None) -> TokenSource:
    """The training split of the interpreter's standard library, through the best tokenizer at hand.

    Args:
        vocab_size: ids the model knows.
        corpora: folder to keep prepared data in; made where missing.
        progress: called with a line of text now and then, e.g. `print`.

    Raises:
        ValueError: the vocabulary is too small for any tokenizer.
    """
    say = progress or (lambda line: None)
    name, _ = tokenizers.choose(vocab_size)
    trained, _, size = name.rpartition("bpe-")
    said: set[str] = set()

    def report(what: str, done: int, total: int | None) -> None:
        if what not in said:  # the figures in between are for a bar
            said.add(what)
            say(what)

    def prepared() -> Dataset:
        return prepare(corpus("stdlib"), f"bpe-{size}" if trained else name, corpora=corpora, progress=report)

    dataset = prepared()
    try:
        tokens = read(dataset)
    except ShardError as error:
        say(f"{error}: making it again")
        (dataset.folder / "dataset.json").unlink()  # every shard of an unfinished dataset is checked before it is kept
        dataset = prepared()
        tokens = read(dataset)
    if said:
        say(f"{len(tokens):,} tokens in {dataset.folder}")
    info = {key: dataset.info[key] for key in ("corpus", "corpus_version", "tokenizer", "tokenizer_sha256")}
    info |= {"tokenizer_vocab_size": dataset.info["vocab_size"], "num_tokens": len(tokens)}
    return TokenSource(tokens=tokens, info={**info, "sha256": hashlib.sha256(tokens).hexdigest()})


def read(dataset: Dataset) -> np.ndarray:
    """(num_tokens,) uint16: the whole training split, in memory."""
    return np.concatenate([shard.open() for shard in dataset.shards("train")])


def batches(
    tokens: np.ndarray, *, micro_batch: int, seq_len: int, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws micro-batches from random places of a stream, no place twice.

    Args:
        tokens: (num_tokens,) integers.
        micro_batch: sequences per micro-batch, B.
        seq_len: tokens per sequence, T.
        count: how many micro-batches.
        seed: the same seed draws the same batches.

    Returns:
        inputs and targets, both (count, B, T) int64; a target is the token after its input.

    Raises:
        ValueError: a size is not positive, or the stream has too few places.
    """
    for name, value in (("micro_batch", micro_batch), ("seq_len", seq_len), ("count", count)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    places, needed = len(tokens) - seq_len, count * micro_batch
    if places < needed:
        raise ValueError(
            f"tokens has {len(tokens)} entries, too few for count={count} times micro_batch={micro_batch} different "
            f"sequences of seq_len={seq_len} + 1; lower one of these or take a longer stream"
        )
    starts = np.random.default_rng(seed).choice(places, size=needed, replace=False)
    windows = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)  # (count * B, T + 1)
    windows = windows.reshape(count, micro_batch, seq_len + 1)
    return np.ascontiguousarray(windows[..., :-1]), np.ascontiguousarray(windows[..., 1:])
