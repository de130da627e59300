"""Turning text into token ids and back, with whatever is installed, and never through a network.

Every tokenizer here is *byte-level*: any text has ids, and its ids give exactly the text back. The byte-pair encodings
are GPT-2's (when tiktoken has its files at hand), or trained on the corpus itself by rustbpe or by Hugging Face
tokenizers. Where nothing is installed, the UTF-8 bytes are the tokens.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016); Radford et al.,
"Language Models are Unsupervised Multitask Learners" (2019), for the byte-level form.
"""

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"

# Cuts text into the pieces within which bytes are merged: contractions, words with the character before them, up to
# three digits, punctuation with the newlines after it, runs of space. Source: tiktoken's cl100k_base, simplified.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# GPT-2's files as tiktoken downloads and caches them: address and SHA-256.
# Source: tiktoken_ext/openai_public.py, https://github.com/openai/tiktoken
GPT2_FILES = {
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe": (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    ),
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json": (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    ),
}


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer.

    Args:
        name: e.g. "gpt2", "rustbpe-8192".
        vocab_size: ids are below it.
        eot: id that separates documents.
        sha256: over everything that decides the ids; equal hash, equal ids.
    """

    name: str
    vocab_size: int
    eot: int
    sha256: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids per text; special tokens written in a text count as plain text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; ids that cut a character apart give U+FFFD there."""
        ...


@dataclass(frozen=True, kw_only=True)
class BytePairTokenizer:
    """Any byte-pair encoding, through the two functions that its library gives us."""

    name: str
    vocab_size: int
    eot: int
    sha256: str
    encode_texts: Callable[[list[str]], list[list[int]]]
    decode_ids: Callable[[list[int]], str]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode_texts(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_ids(list(ids))


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
        return bytes(ids).decode("utf-8", errors="replace")


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def gpt2_at_hand() -> bool:
    """Whether tiktoken is installed and has GPT-2's files, undamaged, in its cache.

    tiktoken downloads what its cache lacks, and deletes and downloads what does not match its hash; asking first is
    the way to keep it off the network.
    """
    if not installed("tiktoken"):
        return False
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":  # tiktoken's way of switching its cache off
        return False
    cache = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    for address, sha256 in GPT2_FILES.items():
        try:
            content = (cache / hashlib.sha1(address.encode()).hexdigest()).read_bytes()
        except OSError:
            return False
        if hashlib.sha256(content).hexdigest() != sha256:
            return False
    return True


def gpt2() -> BytePairTokenizer:
    """GPT-2's own encoding, V = 50257, from tiktoken's cache.

    Raises:
        ValueError: the cache does not hold it.
    """
    if not gpt2_at_hand():
        raise ValueError(
            "tokenizer is 'gpt2', but tiktoken's cache does not hold its files; point TIKTOKEN_CACHE_DIR at a copy"
        )
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    return _from_tiktoken("gpt2", encoding, "".join(GPT2_FILES.values()))


def train_rustbpe(texts: Iterator[str], vocab_size: int) -> BytePairTokenizer:
    """Trains a byte-pair encoding with rustbpe and runs it with tiktoken.

    Args:
        texts: what to train on.
        vocab_size: 256 bytes, the merges, and the end-of-text mark, which comes last. A small corpus may give fewer.
    """
    import rustbpe
    import tiktoken

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(texts, vocab_size - 1, pattern=PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    name = f"rustbpe-{vocab_size}"
    encoding = tiktoken.Encoding(
        name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )
    return _from_tiktoken(name, encoding, json.dumps([PATTERN, [[token.hex(), rank] for token, rank in ranks.items()]]))


def _from_tiktoken(name: str, encoding: "tiktoken.Encoding", identity: str) -> BytePairTokenizer:
    return BytePairTokenizer(
        name=name,
        vocab_size=encoding.n_vocab,
        eot=encoding.eot_token,
        sha256=hashlib.sha256(identity.encode()).hexdigest(),
        encode_texts=lambda texts: encoding.encode_ordinary_batch(texts, num_threads=min(8, os.cpu_count() or 1)),
        decode_ids=encoding.decode,
    )


def train_hf(texts: Iterator[str], vocab_size: int) -> BytePairTokenizer:
    """The same encoding trained and run by Hugging Face tokenizers; arguments as for `train_rustbpe`.

    The end-of-text mark is id 0 here: that library numbers special tokens first.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text, not a mark
    return BytePairTokenizer(
        name=f"hf-bpe-{vocab_size}",
        vocab_size=tokenizer.get_vocab_size(),
        eot=tokenizer.token_to_id(END_OF_TEXT),
        sha256=hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        encode_texts=lambda texts: [encoded.ids for encoded in tokenizer.encode_batch(texts)],
        decode_ids=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )


TRAINED_VOCAB_SIZE = 8192
SMALLEST_VOCAB_SIZE = 257  # every byte, and the end-of-text mark


def choose(vocab_size: int) -> tuple[str, Callable[[Iterator[str]], Tokenizer]]:
    """The best tokenizer this machine has for a model's vocabulary.

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
