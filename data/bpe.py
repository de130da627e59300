"""Byte-pair encodings, trained on a corpus by rustbpe or by Hugging Face tokenizers.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016); Radford et al.,
"Language Models are Unsupervised Multitask Learners" (2019), for the byte-level form.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.characters import check_ids

if TYPE_CHECKING:
    import numpy as np
    import tiktoken
    import tokenizers as hf

END_OF_TEXT = "<|endoftext|>"

# Cuts text into the pieces within which bytes are merged: contractions, words with the character before them, up to
# three digits, punctuation with the newlines after it, runs of space. Source: tiktoken's cl100k_base, simplified.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

SMALLEST_VOCAB_SIZE = 257  # every byte, and the end-of-text mark

# Texts that rustbpe takes into memory at once; corpora give pieces of at most a quarter of a million characters.
TEXTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class BytePairTokenizer:
    """Any byte-pair encoding, through the functions that its library gives us.

    Args:
        content: what `to_json` gives: the kind, and everything that the encoding is made from.
        encode_marked: many documents in one call: the text they make with `END_OF_TEXT` between them, in which it is the
            mark and not text. None where the library has no such call.
    """

    name: str
    vocab_size: int
    eot: int
    sha256: str
    content: dict[str, Any]
    encode_texts: Callable[[list[str]], list[list[int]]]
    decode_ids: Callable[[list[int]], str]
    encode_marked: Callable[[str], "np.ndarray"] | None = None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode_texts(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self)
        return self.decode_ids(list(ids))

    def to_json(self) -> dict[str, Any]:
        return self.content


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def train_rustbpe(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Trains a byte-pair encoding with rustbpe and runs it with tiktoken.

    Args:
        texts: what to train on.
        vocab_size: 256 bytes, the merges, and the end-of-text mark, which comes last. A small corpus may give fewer.
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size - 1, buffer_size=TEXTS_AT_ONCE, pattern=PATTERN)
    return from_ranks([bytes(token) for token, _ in trainer.get_mergeable_ranks()], f"rustbpe-{vocab_size}")


def from_ranks(tokens: list[bytes], name: str) -> BytePairTokenizer:
    """The encoding that merges the pair of neighbours whose union comes first in a list, run by tiktoken.

    Args:
        tokens: by rank, which is also the id: the 256 bytes, then what merges make. The end-of-text mark comes after.

    Raises:
        ValueError: the tokens are not such a list.
    """
    if tokens[:256] != [bytes([value]) for value in range(256)]:
        raise ValueError("its first 256 tokens are not the bytes in their order")
    if len(set(tokens)) != len(tokens) or b"" in tokens:
        raise ValueError("a token is empty or comes twice")
    import tiktoken

    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding(
        name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )
    identity = json.dumps([PATTERN, [[token.hex(), rank] for token, rank in ranks.items()]])
    content = {"kind": "rustbpe", "pattern": PATTERN, "tokens": [token.hex() for token in tokens]}
    return from_tiktoken(name, encoding, identity, content)


def from_tiktoken(
    name: str, encoding: "tiktoken.Encoding", identity: str, content: dict[str, Any]
) -> BytePairTokenizer:
    """A tokenizer that runs one of tiktoken's encodings; `identity` is all that decides its ids."""
    return BytePairTokenizer(
        name=name,
        vocab_size=encoding.n_vocab,
        eot=encoding.eot_token,
        sha256=hashlib.sha256(identity.encode()).hexdigest(),
        content=content,
        # Not encode_ordinary_batch: its threads take turns at Python's lock, and preparing runs one process per core.
        encode_texts=lambda texts: [encoding.encode_ordinary(text) for text in texts],
        encode_marked=lambda text: encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT}, disallowed_special=()),
        decode_ids=encoding.decode,
    )


def train_hf(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """The same encoding trained and run by Hugging Face tokenizers; arguments as for `train_rustbpe`.

    The end-of-text mark is id 0 here: that library numbers special tokens first.
    """
    from tokenizers import pre_tokenizers, trainers

    tokenizer = _hf_pipeline({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return from_merges([ids[part] for pair in merges for part in pair], f"hf-bpe-{vocab_size}")


def from_merges(merges: list[int], name: str) -> BytePairTokenizer:
    """The encoding that applies merges in their order, run by Hugging Face tokenizers.

    Args:
        merges: left and right id of each merge, one after the other. Ids count the end-of-text mark, the 256 bytes in
            the order of that library's alphabet, then what is new in each merge.

    Raises:
        ValueError: a merge takes ids that do not exist before it.
    """
    from tokenizers import pre_tokenizers

    parts = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = set(parts)
    pairs = []
    for left, right in zip(merges[::2], merges[1::2], strict=True):
        if not (1 <= left < len(parts) and 1 <= right < len(parts)):
            raise ValueError(f"merge {len(pairs)} is of {left} and {right}, which are not ids before it")
        pairs.append((parts[left], parts[right]))
        whole = parts[left] + parts[right]
        if whole not in known:  # two merges may make the same token
            known.add(whole)
            parts.append(whole)
    tokenizer = _hf_pipeline({part: i for i, part in enumerate(parts)}, pairs)
    return BytePairTokenizer(
        name=name,
        vocab_size=len(parts),
        eot=0,
        sha256=hashlib.sha256(json.dumps([PATTERN, merges]).encode()).hexdigest(),
        content={"kind": "hf-bpe", "pattern": PATTERN, "merges": merges},
        encode_texts=lambda texts: [encoded.ids for encoded in tokenizer.encode_batch(texts)],
        decode_ids=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )


def _hf_pipeline(ids: dict[str, int], merges: list[tuple[str, str]]) -> "hf.Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text, not a mark
    return tokenizer
