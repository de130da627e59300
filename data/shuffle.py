"""The order in which an epoch visits shards, documents and windows; all of it follows from (seed, epoch, shard).

Legend: T targets of a window, N tokens of a shard.
"""

import numpy as np

from data.shards import BLOCK

PHASE, DOCUMENTS, WINDOWS, SHARDS = range(4)  # what a random draw is for


class Epoch:
    """Where every sequence of one epoch lies; known from the lengths of the shards, without reading them.

    Args:
        number: of the epoch, from 0.
        lengths: tokens of every shard.
        seq_len: T.
        seed: of the run.
    """

    def __init__(self, number: int, lengths: list[int], *, seq_len: int, seed: int) -> None:
        self.number, self.lengths, self.seq_len, self.seed = number, lengths, seq_len, seed
        # A shard's first window has 1 to T targets, the others T but for the last.
        self.firsts = [1 + int(draw(1, seed, number, i, PHASE)[0]) % seq_len for i in range(len(lengths))]
        self.counts = [1 + -(-max(n - first, 0) // seq_len) for n, first in zip(lengths, self.firsts, strict=True)]
        self.order = permutation(len(lengths), seed, number, 0, SHARDS).tolist()
        self.ends = np.cumsum([self.counts[shard] for shard in self.order])  # sequences up to the end of every shard
        self.num_sequences = int(self.ends[-1])
        self._windows: dict[int, np.ndarray] = {}  # of the shard that was asked for last

    def places(self, start: int, stop: int) -> list[tuple[int, int, int, int]]:
        """(epoch, shard, first target, last target + 1) of a range of sequences."""
        found = []
        while start < stop:
            position = int(np.searchsorted(self.ends, start, side="right"))
            shard, end = self.order[position], int(self.ends[position])
            begin = end - self.counts[shard]
            if shard not in self._windows:
                self._windows = {shard: permutation(self.counts[shard], self.seed, self.number, shard, WINDOWS)}
            for window in self._windows[shard][start - begin : stop - begin].tolist():
                last = self.firsts[shard] + window * self.seq_len
                found.append((self.number, shard, max(last - self.seq_len, 0), min(last, self.lengths[shard])))
            start = min(stop, end)
        return found


class Stream:
    """A shard's documents joined in some order, with an end-of-text id before the first.

    Args:
        tokens: (N,) integers.
        ends: places of the end-of-text ids; what follows the last of them stays last.
        order: of the documents.
        eot: the end-of-text id.
    """

    def __init__(self, tokens: np.ndarray, ends: np.ndarray, order: np.ndarray, eot: int) -> None:
        starts = np.concatenate([[0], ends + 1])  # of every document and of the rest, which may be empty
        lengths = np.diff(np.append(starts, len(tokens)))
        order = np.append(order, len(ends))
        self.tokens, self.eot = tokens, eot
        self.starts = starts[order]
        self.begins = np.concatenate([[0], np.cumsum(lengths[order])])  # of every document in the stream, and the end

    def read(self, first: int, last: int, x: np.ndarray, y: np.ndarray) -> None:
        """Copies targets first to last - 1 into y, and the stream one token earlier into x; both are long enough."""
        tokens = self.between(max(first - 1, 0), last)
        if first == 0:
            tokens = np.concatenate([np.array([self.eot], tokens.dtype), tokens])
        x[: last - first], y[: last - first] = tokens[:-1], tokens[1:]

    def between(self, first: int, last: int) -> np.ndarray:
        """(last - first,) tokens of the stream."""
        index = int(np.searchsorted(self.begins, first, side="right")) - 1
        parts = []
        while first < last:
            stop = min(last, int(self.begins[index + 1]))
            place = int(self.starts[index]) + first - int(self.begins[index])
            parts.append(self.tokens[place : place + stop - first])
            first, index = stop, index + 1
        return np.concatenate(parts)


def find(tokens: np.ndarray, eot: int) -> np.ndarray:
    """(any number,) int64: the places of an id, found block by block, so that nothing of a shard's size is made."""
    return np.concatenate(
        [np.flatnonzero(tokens[start : start + BLOCK] == eot) + start for start in range(0, len(tokens), BLOCK)]
    )


def draw(count: int, *key: int) -> np.ndarray:
    """(count,) uint64: random numbers that depend on the key alone."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def permutation(count: int, *key: int) -> np.ndarray:
    """(count,) int64: 0 to count - 1 in an order that depends on the key alone, and not on numpy's version."""
    return np.argsort(draw(count, *key), kind="stable")
