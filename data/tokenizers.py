"""Turning text into token ids and back: the tokenizers there are, by name.

    gpt2          GPT-2's byte-pair encoding, 50,257 ids, run by tiktoken from its own files
    char          the characters of the corpus itself
    bytes         the 256 bytes of UTF-8; needs nothing installed
    bpe-8192      a byte-pair encoding trained on the corpus, with any number of ids from 257; bpe-8k, bpe-16k and
                  bpe-32k are short for 8192, 16384 and 32768
    NAME, X.json  one that was trained and saved before

All but `char` are *byte-level*: any text has ids, and its ids give exactly the text back.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data.bpe import (
    END_OF_TEXT,
    PATTERN,
    SMALLEST_VOCAB_SIZE,
    BytePairTokenizer,
    installed,
    train_hf,
    train_rustbpe,
)
from data.characters import ByteTokenizer, CharacterTokenizer, train_characters
from data.gpt2 import GPT2_FILES, fetch_gpt2, gpt2, gpt2_at_hand
from data.tokenizer_files import NAME, Tokenizer, TokenizerError, load, save

__all__ = [
    "END_OF_TEXT",
    "GPT2_FILES",
    "PATTERN",
    "SMALLEST_VOCAB_SIZE",
    "BytePairTokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Tokenizer",
    "TokenizerError",
    "choose",
    "gpt2",
    "gpt2_at_hand",
    "installed",
    "load",
    "resolve",
    "save",
    "train_characters",
    "train_hf",
    "train_rustbpe",
]

TRAINED_VOCAB_SIZE = 8192
LARGEST_VOCAB_SIZE = 131_072
# Of the training split's beginning. More hardly changes the merges, and would take more than 1 GB of memory.
TRAINING_CHARACTERS = 200_000_000
BUILT_IN = ("gpt2", "char", "bytes", "bpe-8192", "bpe-16384", "bpe-32768")


def choose(vocab_size: int) -> tuple[str, Callable[[Iterator[str]], Tokenizer]]:
    """The best tokenizer this machine has for a model's vocabulary, without asking a network.

    Args:
        vocab_size: ids the model knows; the tokenizer may use fewer.

    Returns:
        its name, and a function that makes it from the corpus's texts.

    Raises:
        ValueError: the vocabulary cannot hold all bytes and an end-of-text mark.
    """
    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; it must be at least {SMALLEST_VOCAB_SIZE}: 256 bytes and an end-of-text mark"
        )
    if vocab_size >= 50257 and gpt2_at_hand():
        return "gpt2", lambda texts: gpt2()
    size = min(vocab_size, TRAINED_VOCAB_SIZE)
    if installed("rustbpe") and installed("tiktoken"):
        return f"rustbpe-{size}", lambda texts: train_rustbpe(texts, size)
    if installed("tokenizers"):
        return f"hf-bpe-{size}", lambda texts: train_hf(texts, size)
    return "bytes", lambda texts: ByteTokenizer()


def resolve(
    spec: str,
    *,
    corpora: Path,
    texts: Callable[[str], Iterable[str]],
    progress: Callable[[str], object] | None = None,
) -> Tokenizer:
    """The tokenizer that a user asked for by name, made from a corpus where it has to be.

    Args:
        spec: as in the table above.
        corpora: saved tokenizers lie in its folder `tokenizers`.
        texts: gives the texts of a split, "train" or "val". A byte-pair encoding learns from the first 200 million
            characters of "train"; characters are taken from both.
        progress: called with a line of text before something that takes long.

    Raises:
        ValueError: there is no such tokenizer, or what it needs is not installed.
        OSError: GPT-2's files are neither at hand nor to be had.
    """
    say = progress or (lambda line: None)
    if spec == "gpt2":
        if not gpt2_at_hand():
            say("downloading GPT-2's vocabulary into tiktoken's cache")
            fetch_gpt2()
        return gpt2()
    if spec == "bytes":
        return ByteTokenizer()
    if spec == "char":
        say("collecting the characters of the corpus")
        return train_characters(itertools.chain(texts("train"), texts("val")))
    if (size := bpe_size(spec)) is not None:
        train = bpe_trainer(size)
        say(f"training a byte-pair encoding of {size} ids")
        return train(texts("train"))
    if spec.endswith(".json"):
        return load(Path(spec))
    folder = corpora / "tokenizers"
    if NAME.fullmatch(spec) and (folder / f"{spec}.json").exists():
        return load(folder / f"{spec}.json")
    known = [*BUILT_IN, *sorted(path.stem for path in folder.glob("*.json"))]
    near = difflib.get_close_matches(spec, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no tokenizer {spec!r}: {hint}choose from {', '.join(known)}, or the path of a .json")


def saved_path(name: str, corpora: Path) -> Path:
    """Where a trained tokenizer of a name is kept.

    Raises:
        ValueError: it cannot be a name, or means something else.
    """
    if not NAME.fullmatch(name) or name.endswith(".json"):
        raise ValueError(f"name is {name!r}; use letters, digits, '.', '-' and '_', a letter or digit first")
    if name in BUILT_IN or bpe_size(name) is not None:
        raise ValueError(f"name is {name!r}, which already means a tokenizer of its own; choose another")
    return corpora / "tokenizers" / f"{name}.json"


def bpe_size(spec: str) -> int | None:
    """The vocabulary size in "bpe-8192" or "bpe-8k"; None for any other spec."""
    match = re.fullmatch(r"bpe-([0-9]{1,7})(k?)", spec)
    if not match:
        return None
    return int(match[1]) * (1024 if match[2] else 1)


def bpe_trainer(vocab_size: int) -> Callable[[Iterable[str]], BytePairTokenizer]:
    """Trains a byte-pair encoding of some size: rustbpe, or where that is missing Hugging Face tokenizers.

    Returns:
        a function that takes texts, of which it uses the first 200 million characters.

    Raises:
        ValueError: the size is not possible, or nothing is installed that trains.
    """
    if not SMALLEST_VOCAB_SIZE <= vocab_size <= LARGEST_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; it must be from {SMALLEST_VOCAB_SIZE} (256 bytes and an end-of-text mark) "
            f"to {LARGEST_VOCAB_SIZE}"
        )
    if installed("rustbpe") and installed("tiktoken"):
        train = train_rustbpe
    elif installed("tokenizers"):
        train = train_hf
    else:
        raise ValueError("training a byte-pair encoding needs a library: pip install rustbpe tiktoken")
    return lambda texts: train(first_characters(texts, TRAINING_CHARACTERS), vocab_size)


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Texts up to a number of characters in all."""
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return
