"""Batches for training: shuffled, every token a target exactly once per epoch, resumable at any step on any world size.

    epoch      the shards in a permuted order
    shard      its documents in a permuted order, joined to one stream with an end-of-text id before it
    sequence   a window of T targets of that stream; x is the stream one token earlier
    step       `sequences_per_step` consecutive sequences of the endless row of epochs

The windows of a shard begin at a random phase, so that they cut the text elsewhere in every epoch, and they come in a
permuted order too. The first and the last are short: x is filled up with end-of-text ids, y with -100, which counts for
nothing. All randomness comes from (seed, epoch, shard) and from nothing else (`data/shuffle.py`), so a position is two
numbers, the `Cursor`, and says the same to one process and to eight.

Legend: B sequences of a micro-batch, T tokens of a sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from data.dataset import Dataset
from data.shards import Shard
from data.shuffle import DOCUMENTS, Epoch, Stream, find, permutation

IGNORED = -100  # a target that counts for nothing; PyTorch's own choice for cross-entropy

MicroBatch = tuple[np.ndarray, np.ndarray]  # x and y, both (B, T) int64


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A place in the endless row of sequences: the next one to be read.

    Args:
        epoch: from 0.
        sequence: within its epoch, from 0.
    """

    epoch: int = 0
    sequence: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 0:
                raise ValueError(f"cursor.{name} is {value!r}; it must be a whole number from 0")

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "Cursor":
        """Reads back what `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(data, dict) or set(data) != {"epoch", "sequence"}:
            raise ValueError(f"cursor is {data!r}; it must have exactly epoch and sequence")
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """What one process needs for one optimizer step.

    Args:
        micro_batches: (x, y) of each, (B, T) int64; y is -100 where nothing counts.
        counts: targets that count, per micro-batch.
        total: targets that count in the whole step, over all processes.
        cursor: after this step.
        epoch: the same place as a number of epochs, for people to read.
    """

    micro_batches: list[MicroBatch]
    counts: list[int]
    total: int
    cursor: Cursor
    epoch: float


class Loader:
    """The steps of a run from a cursor on, without end.

    Args:
        dataset: what to read.
        split: "train" or "val".
        seq_len: targets per sequence, T.
        seed: equal seeds, equal batches.
        sequences_per_step: over all processes and micro-batches.
        rows: this process's share of a step, a range [start, stop) of its sequences per micro-batch.
        cursor: where to begin.

    Raises:
        ValueError: an argument is impossible, or the split is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str = "train",
        *,
        seq_len: int,
        seed: int,
        sequences_per_step: int,
        rows: Sequence[tuple[int, int]],
        cursor: Cursor = Cursor(),
    ) -> None:
        check_positive(seq_len=seq_len, sequences_per_step=sequences_per_step)
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        for start, stop in rows:
            if not 0 <= start < stop <= sequences_per_step:
                raise ValueError(
                    f"rows has ({start}, {stop}); a range must lie in the step's {sequences_per_step} sequences"
                )
        self.shards, self.eot_in_text = dataset.shards(split), dataset.info["eot_in_text"]
        self.seq_len, self.seed, self.sequences_per_step, self.rows = seq_len, seed, sequences_per_step, list(rows)
        self.cursor = cursor
        self._epochs: dict[int, Epoch] = {}
        self._streams: dict[tuple[int, int], Stream] = {}
        if cursor.sequence >= (count := self._epoch(cursor.epoch).num_sequences):
            raise ValueError(
                f"cursor is at sequence {cursor.sequence} of epoch {cursor.epoch}, which has {count}: "
                "it is from other data, another seq_len or another seed"
            )

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> StepBatches:
        places, cursor = self._places()
        mine = {place[:2] for start, stop in self.rows for place in places[start:stop]}
        # Opened when needed, 0.2 s per 100 million tokens; kept while needed.
        self._streams = {key: self._streams.get(key) or self._stream(*key) for key in mine}
        micro_batches, counts = [], []
        for start, stop in self.rows:
            x, y = empty_batch(stop - start, self.seq_len, self.shards[0].eot)
            for row, (epoch, shard, first, last) in enumerate(places[start:stop]):
                self._streams[epoch, shard].read(first, last, x[row], y[row])
            micro_batches.append((x, y))
            counts.append(sum(last - first for _, _, first, last in places[start:stop]))
        self.cursor = cursor
        return StepBatches(
            micro_batches=micro_batches,
            counts=counts,
            total=sum(last - first for _, _, first, last in places),
            cursor=cursor,
            epoch=cursor.epoch + cursor.sequence / self._epoch(cursor.epoch).num_sequences,
        )

    def _places(self) -> tuple[list[tuple[int, int, int, int]], Cursor]:
        """(epoch, shard, first target, last target + 1) of every sequence of the next step, and the cursor after it."""
        places: list[tuple[int, int, int, int]] = []
        epoch, sequence = self.cursor.epoch, self.cursor.sequence
        while len(places) < self.sequences_per_step:
            layout = self._epoch(epoch)
            stop = min(sequence + self.sequences_per_step - len(places), layout.num_sequences)
            places += layout.places(sequence, stop)
            epoch, sequence = (epoch + 1, 0) if stop == layout.num_sequences else (epoch, stop)
        self._epochs = {number: layout for number, layout in self._epochs.items() if number >= epoch}
        return places, Cursor(epoch=epoch, sequence=sequence)

    def _epoch(self, number: int) -> "Epoch":
        if number not in self._epochs:
            lengths = [shard.num_tokens for shard in self.shards]
            self._epochs[number] = Epoch(number, lengths, seq_len=self.seq_len, seed=self.seed)
        return self._epochs[number]

    def _stream(self, epoch: int, shard: int) -> "Stream":
        tokens, eot = self.shards[shard].open(), self.shards[shard].eot
        ends = np.empty(0, np.int64) if self.eot_in_text else find(tokens, eot)
        return Stream(tokens, ends, permutation(len(ends), self.seed, epoch, shard, DOCUMENTS), eot)


def validation_windows(
    dataset: Dataset, split: str = "val", *, seq_len: int, max_tokens: int, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """A split in its own order, the same batches whatever runs beside: every token once.

    Args:
        dataset: what to read.
        split: "val" or "train".
        seq_len: T.
        max_tokens: the first so many tokens of the split, or all if it has fewer.
        batch: sequences per batch, B; missing ones of the last are filled up with what counts for nothing.

    Returns:
        x, y, both (B, T) int64, and how many targets count.
    """
    check_positive(seq_len=seq_len, max_tokens=max_tokens, batch=batch)
    windows = _windows_in_order(dataset.shards(split), seq_len, max_tokens)
    while group := list(islice(windows, batch)):
        x, y = empty_batch(batch, seq_len, group[0][0].eot)
        for row, (stream, first, last) in enumerate(group):
            stream.read(first, last, x[row], y[row])
        yield x, y, sum(last - first for _, first, last in group)


def _windows_in_order(shards: list[Shard], seq_len: int, max_tokens: int) -> Iterator[tuple[Stream, int, int]]:
    nothing = np.empty(0, np.int64)
    for shard in shards:
        length = min(shard.num_tokens, max_tokens)
        if length:
            stream = Stream(shard.open(), nothing, nothing, shard.eot)
        for first in range(0, length, seq_len):
            yield stream, first, min(first + seq_len, length)
        max_tokens -= length


def empty_batch(batch: int, seq_len: int, eot: int) -> MicroBatch:
    """x of nothing but end-of-text ids and y of nothing that counts, both (B, T) int64."""
    return np.full((batch, seq_len), eot, np.int64), np.full((batch, seq_len), IGNORED, np.int64)


def check_positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
