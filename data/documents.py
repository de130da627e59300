"""What a corpus is: documents of two splits, streamed in pieces of bounded size."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.download import Progress

SPLITS = ("train", "val")

# Characters in the longest piece of a document: what is tokenized at once, so what bounds memory.
PIECE = 1 << 18

# Where pieces are best cut: before a space, or after a line break, that stands behind something visible. Byte-pair
# encodings like GPT-2's never merge across these places, so the pieces have the ids that the whole text has.
CUT = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=\S)")
NEAR = 4096  # characters before a piece's end that are searched first


class Piece(NamedTuple):
    """A document, or a part of a long one.

    Args:
        text: at most `PIECE` characters, at least one.
        ends: the document ends here; only then does an end-of-text mark follow.
    """

    text: str
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text to learn from; subclasses say where it comes from.

    In every method `raw` is the folder of all raw corpora, `corpora/raw`; a corpus keeps its files in `raw/<name>`.

    Args:
        name: also the name of its folder under `corpora/`.
    """

    name: str

    def fetch(self, raw: Path, progress: Progress | None = None) -> None:
        """Makes sure that the files are there, and downloads what is missing.

        Args:
            progress: called now and then while something is downloaded.

        Raises:
            ValueError: a file is there and is not what it should be, or a package is missing.
            OSError: it cannot be downloaded; the message says where to put it by hand.
        """

    def version(self, raw: Path) -> str:
        """Names the content: the same version, the same documents. Call `fetch` first.

        Raises:
            ValueError: a file cannot be used.
        """
        raise NotImplementedError

    def pieces(self, raw: Path, split: str) -> Iterator[Piece]:
        """All documents of a split in a fixed order, long ones in parts; the parts joined are the document.

        Args:
            split: "train" or "val".

        Raises:
            ValueError: a file cannot be used, or there is no such split.
        """
        raise NotImplementedError

    def documents(self, raw: Path, split: str) -> Iterator[str]:
        """The texts of `pieces`, for what does not care where documents end."""
        return (piece.text for piece in self.pieces(raw, split))


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be 'train' or 'val'")


def read_text(path: Path, start: int = 0, end: int | None = None) -> Iterator[str]:
    """Streams a part of a UTF-8 file as it is, line endings and all.

    Args:
        start, end: bytes, both between characters.

    Raises:
        ValueError: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        file.seek(start)
        try:
            while block := file.read(PIECE if end is None else min(PIECE, end - file.tell())):
                yield decoder.decode(block)
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            place = file.tell() - len(error.object) + error.start
            raise ValueError(
                f"{path} is not UTF-8 text (byte {place:,} is 0x{error.object[error.start]:02x}); "
                "convert it with iconv -t UTF-8, or take it away if it is no text"
            ) from error


def cut(texts: Iterable[str]) -> Iterator[Piece]:
    """One document, given in parts of any size, as pieces cut where a tokenizer cuts anyway if there is such a place.

    Returns:
        Pieces of at most `PIECE` characters, the last of which ends the document; none for an empty one.
    """
    rest = ""
    for text in texts:
        rest += text
        begin = 0
        while len(rest) - begin > PIECE:
            place = _cutting_place(rest, begin, begin + PIECE)
            yield Piece(rest[begin:place], False)
            begin = place
        rest = rest[begin:]
    if rest:
        yield Piece(rest, True)


def _cutting_place(text: str, begin: int, end: int) -> int:
    """The last place in a range where a byte-pair encoding cuts whatever follows; else the range's end."""
    piece = text[begin : end + 1]  # by itself: what came before it may be gone by now
    for start in (max(0, end - begin - NEAR), 0):
        places = [match.start() for match in CUT.finditer(piece, start + 1)]
        if places:
            return begin + places[-1]
    return end
