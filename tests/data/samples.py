"""Small corpora in memory, and datasets of given ids."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.dataset import Dataset
from data.documents import Corpus, Piece
from data.shards import ShardWriter

EOT = 0


@dataclass(frozen=True, kw_only=True)
class Texts(Corpus):
    """A corpus of given documents, a piece each unless a document is a list of pieces.

    Args:
        read: grows by every piece that was asked for.
    """

    name: str = "texts"
    train: tuple
    val: tuple = ("validation",)
    read: list[Piece] = field(default_factory=list)

    def version(self, raw: Path) -> str:
        return str(len(self.train))

    def pieces(self, raw: Path, split: str) -> Iterator[Piece]:
        for document in self.train if split == "train" else self.val:
            parts = [document] if isinstance(document, str) else document
            for i, part in enumerate(parts):
                piece = Piece(part, i == len(parts) - 1)
                self.read.append(piece)
                yield piece


def make_dataset(
    folder: Path, *, vocab_size: int = 1 << 16, eot_in_text: bool = False, **splits: list[np.ndarray]
) -> Dataset:
    """A dataset of one shard per array of ids, in the splits `train` and `val`."""
    by_split = {}
    for split in ("train", "val"):
        by_split[split] = []
        for index, ids in enumerate(splits.get(split, [])):
            path = folder / f"{split}_{index:06d}.bin"
            made_of = {"vocab_size": vocab_size, "eot": EOT, "tokenizer_sha256": "ab" * 32, "origin": "cd" * 32}
            with ShardWriter(path, **made_of) as writer:
                writer.append(np.asarray(ids), texts=1, text_bytes=0)
                by_split[split].append(writer.finish())
    return Dataset(folder=folder, info={"eot_in_text": eot_in_text}, by_split=by_split, make_tokenizer=lambda: None)
