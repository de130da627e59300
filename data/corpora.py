"""Corpora by name, read as a stream: no corpus is ever held in memory as a whole.

    stdlib             the interpreter's own library; embedded, needs no network
    tinyshakespeare    1.1 MB of Shakespeare's plays
    tinystories        2.1 million stories in a small child's words
    fineweb-edu-10b    9.7 million educational web pages, about 10 billion GPT-2 tokens
    PATH               any UTF-8 text file, or a folder of them

How each is cut into "train" and "val" never depends on a seed, a machine or an order of files:

    one text           train is the first 90 % of its bytes, val the rest (nanoGPT's convention), and no character is
                       cut; so it is for tinyshakespeare and for one file of the user's
    several documents  val is every document whose name's SHA-256 lies in the lowest 2 %, at least one of them; so it is
                       for stdlib and for a folder
    tinystories        its own validation file
    fineweb-edu-10b    val is the first 1 % of the first file's documents. Elsewhere it is the first 100 million tokens;
                       both begin with the same documents, and this one needs no tokenizer
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data import stdlib
from data.documents import Corpus, Piece, check_split, cut, read_text
from data.download import Progress, download
from data.files import file_sha256
from data.hub import FINEWEB_EDU_10B, TINYSTORIES

TRAINING_SHARE = 0.9  # of the bytes of a single text
VALIDATION_SHARE = 0.02  # of many documents


@dataclass(frozen=True, kw_only=True)
class StandardLibrary(Corpus):
    """The running interpreter's library: one document per module."""

    name: str = "stdlib"

    def version(self, raw: Path) -> str:
        return stdlib.version(stdlib.documents())

    def pieces(self, raw: Path, split: str) -> Iterator[Piece]:
        check_split(split)
        docs = stdlib.documents()
        val = validation_names([name for name, _ in docs])
        for name, text in docs:
            if (name in val) == (split == "val"):
                yield from cut([text])


@dataclass(frozen=True, kw_only=True)
class TextFiles(Corpus):
    """A UTF-8 text file, or a folder of them.

    Args:
        path: the file or folder; in a folder, everything but hidden and empty files is a document.
    """

    path: Path

    def files(self, raw: Path) -> list[tuple[str, Path]]:
        """(name, place) of every document, sorted by name."""
        if not self.path.is_dir():
            return [(self.path.name, self.path)]
        found = []
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file() and path.stat().st_size:
                    found.append((path.relative_to(self.path).as_posix(), path))
        if not found:
            raise ValueError(f"{self.path} holds no text: put at least one UTF-8 file with something in it there")
        return sorted(found)

    def version(self, raw: Path) -> str:
        digest = hashlib.sha256()
        for name, path in self.files(raw):
            digest.update(os.fsencode(f"{name}\0{path.stat().st_size}\0"))
            for text in read_text(path):
                digest.update(text.encode())
        return digest.hexdigest()[:8]

    def pieces(self, raw: Path, split: str) -> Iterator[Piece]:
        check_split(split)
        files = self.files(raw)
        if len(files) == 1:
            path = files[0][1]
            middle = training_bytes(path)
            yield from cut(read_text(path, end=middle) if split == "train" else read_text(path, start=middle))
            return
        val = validation_names([name for name, _ in files])
        for name, path in files:
            if (name in val) == (split == "val"):
                yield from cut(read_text(path))


@dataclass(frozen=True, kw_only=True)
class TinyShakespeare(TextFiles):
    """Shakespeare's plays in one file. Source: https://github.com/karpathy/char-rnn"""

    name: str = "tinyshakespeare"
    path: Path = Path("input.txt")
    url: str = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    sha256: str = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def files(self, raw: Path) -> list[tuple[str, Path]]:
        return [(self.path.name, raw / self.name / self.path)]

    def fetch(self, raw: Path, progress: Progress | None = None) -> None:
        ((_, path),) = self.files(raw)
        download(self.url, path, sha256=self.sha256, progress=progress)
        if file_sha256(path) != self.sha256:
            raise ValueError(f"{path} is not {self.name}: its SHA-256 is not {self.sha256}; put the right file there")


CORPORA: dict[str, Corpus] = {c.name: c for c in (StandardLibrary(), TinyShakespeare(), TINYSTORIES, FINEWEB_EDU_10B)}
RESERVED = {*CORPORA, "raw", "tokenizers"}  # folders under corpora/ that are not a user's text


def corpus(name_or_path: str | Path) -> Corpus:
    """The corpus of a name, or of a text file or folder.

    Raises:
        ValueError: it is neither; the message names the nearest.
    """
    given = str(name_or_path)
    if given in CORPORA:
        return CORPORA[given]
    path = Path(given)
    if path.is_file() or path.is_dir():
        stem = re.sub(r"[^a-z0-9._-]+", "-", path.resolve().stem.lower()).strip("-.") or "text"
        return TextFiles(name=f"{stem}-text" if stem in RESERVED else stem, path=path)
    near = difflib.get_close_matches(given, CORPORA, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no corpus and no file {given!r}: {hint}choose from {', '.join(CORPORA)}, "
        "or give the path of a text file or folder"
    )


def validation_names(names: Iterable[str]) -> set[str]:
    """The documents kept for validation: neither none nor all of two or more."""
    share = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) / 2**256 for name in names}
    ranked = sorted(share, key=share.__getitem__)
    count = sum(value < VALIDATION_SHARE for value in share.values())
    return set(ranked[: min(max(count, 1), len(ranked) - 1)])


def training_bytes(path: Path) -> int:
    """How many bytes of a single text are for training: 90 %, down to where a character begins.

    Raises:
        ValueError: nothing would be left for one of the splits.
    """
    size = path.stat().st_size
    middle = int(size * TRAINING_SHARE)
    with open(path, "rb") as file:
        file.seek(max(0, middle - 3))
        before = file.read(middle - file.tell() + 1)
    while before and before[-1] & 0xC0 == 0x80:  # inside a character
        before, middle = before[:-1], middle - 1
    if not 0 < middle < size:
        raise ValueError(f"{path} has {size} bytes, too few for a training and a validation part; give it more text")
    return middle
