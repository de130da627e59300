"""Tokenizers without merges: one id for every byte, or for every character of a corpus."""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ByteTokenizer:
    """UTF-8 bytes as ids. A newline separates documents: no byte is left over for an end-of-text mark."""

    name: str = "bytes"
    vocab_size: int = 256
    eot: int = ord("\n")
    sha256: str = hashlib.sha256(b"bytes").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("utf-8")) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self)
        return bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bytes"}


@dataclass(frozen=True, kw_only=True)
class CharacterTokenizer:
    """The characters of one corpus as ids, in the order of their code points.

    A newline separates documents, or, in a corpus without one, the first character. A character that the corpus does
    not have has no id.

    Args:
        characters: all of them, each once, sorted.
    """

    characters: str
    name: str = "char"

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @cached_property
    def eot(self) -> int:
        return max(self.characters.find("\n"), 0)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(["char", self.characters]).encode()).hexdigest()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters)}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [list(map(self._ids.__getitem__, text)) for text in texts]
        except KeyError as error:
            (character,) = error.args
            raise ValueError(
                f"tokenizer {self.name!r} has no id for the character {character!r} (U+{ord(character):04X}): the text "
                "it was made from does not have it; leave it out, or use another tokenizer"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self)
        return "".join(map(self.characters.__getitem__, ids))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": [ord(character) for character in self.characters]}


def train_characters(texts: Iterable[str]) -> CharacterTokenizer:
    """A tokenizer for exactly the characters of some texts, so give it all the texts it will ever encode.

    Raises:
        ValueError: there is no character.
    """
    found: set[str] = set()
    for text in texts:
        found.update(text)
    if not found:
        raise ValueError("tokenizer 'char' has no text to take its characters from; give it a corpus that is not empty")
    return CharacterTokenizer(characters="".join(sorted(found)))


def from_code_points(points: list[int]) -> str:
    """The characters of a list of code points that rises.

    Raises:
        ValueError: it does not rise, is empty, or holds what is no character.
    """
    if not points or any(left >= right for left, right in itertools.pairwise(points)):
        raise ValueError("its characters are none, or not sorted, or not each there once")
    if points[0] < 0 or points[-1] > sys.maxunicode or any(0xD800 <= point < 0xE000 for point in points):
        raise ValueError("one of its characters is none of Unicode's")
    return "".join(map(chr, points))


def check_ids(ids: Sequence[int], tokenizer: Any) -> None:
    """Makes sure that a tokenizer is asked to decode its own ids alone.

    Raises:
        ValueError: naming the id.
    """
    for i in ids:
        if not 0 <= i < tokenizer.vocab_size:
            raise ValueError(
                f"token id {i} is outside the vocabulary of {tokenizer.name!r}, 0 to {tokenizer.vocab_size - 1}"
            )
