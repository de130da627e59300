"""Our tokenizers in the files that Hugging Face's libraries read; written as JSON, so that neither is needed here.

The ids are the same, with one exception that is wanted there: the end-of-text mark written in a text becomes its id.

    tokenizer.json          alphabet, merges, and how a text is cut before any merging
    tokenizer_config.json   which class runs it, and which token ends a text

tiktoken merges the neighbours whose *union* has the lowest rank, Hugging Face those whose *pair* has it. So every way
to cut a token into two others becomes a pair of that token's rank.

Source: Radford et al. (2019), for the alphabet that gives every byte a visible character;
https://github.com/huggingface/tokenizers for the format.
"""

import json
from collections.abc import Sequence
from typing import Any

from data.bpe import END_OF_TEXT
from data.gpt2 import gpt2_places
from data.tokenizer_files import Tokenizer

Pairs = list[tuple[str, str]]


def hf_files(tokenizer: Tokenizer, *, max_length: int) -> dict[str, bytes]:
    """The files by name.

    Args:
        tokenizer: any of ours.
        max_length: tokens that the model takes at once.
    """
    content = tokenizer.to_json()
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    files: dict[str, bytes] = {}
    match content["kind"]:
        case "gpt2":
            merges_file, vocab_file = (place.read_bytes() for place in gpt2_places().values())
            files = {"vocab.json": vocab_file, "merges.txt": merges_file}  # for the class that knows no tokenizer.json
            settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
            lines = merges_file.decode().splitlines()[1:]  # the first is a version
            model = bpe(
                json.loads(vocab_file), [(left, right) for left, right in (line.split() for line in lines if line)]
            )
            made = byte_level(model, pattern=None)
        case "rustbpe":
            made = byte_level(bpe(*spelled_ranks(content["tokens"])), content["pattern"])
        case "hf-bpe":
            made = byte_level(bpe(*spelled_merges(content["merges"])), content["pattern"])
        case "bytes":
            made = byte_level(bpe({character: i for i, character in enumerate(alphabet())}, []), pattern=None)
            made["pre_tokenizer"]["use_regex"] = False
        case _:
            made = characters(content["characters"])
    if END_OF_TEXT in made["model"]["vocab"]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        made["added_tokens"] = [{"id": tokenizer.eot, "content": END_OF_TEXT, **flags, "special": True}]
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings |= {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    return {**files, "tokenizer.json": _json(made), "tokenizer_config.json": _json(settings)}


def alphabet() -> list[str]:
    """The visible character of every byte: its own where it has one, else the next from U+0100 on.

    Source: bytes_to_unicode in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def spelled_ranks(tokens: Sequence[str]) -> tuple[dict[str, int], Pairs]:
    """Vocabulary and merges of the encoding that `data.bpe.from_ranks` makes; tokens are hexadecimal."""
    characters = alphabet()
    spelled = ["".join(characters[byte] for byte in bytes.fromhex(token)) for token in tokens]
    ranks = {token: rank for rank, token in enumerate(spelled)}
    pairs: Pairs = []
    for token in spelled[256:]:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        pairs += sorted(known, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
    return {**ranks, END_OF_TEXT: len(ranks)}, pairs


def spelled_merges(merges: Sequence[int]) -> tuple[dict[str, int], Pairs]:
    """Vocabulary and merges of the encoding that `data.bpe.from_merges` makes."""
    vocab = {part: i for i, part in enumerate([END_OF_TEXT, *sorted(alphabet())])}
    parts, pairs = list(vocab), []
    for left, right in zip(merges[::2], merges[1::2], strict=True):
        pairs.append((parts[left], parts[right]))
        if (merged := parts[left] + parts[right]) not in vocab:  # two merges may make the same token
            vocab[merged] = len(parts)
            parts.append(merged)
    return vocab, pairs


def bpe(vocab: dict[str, int], merges: Pairs) -> dict[str, Any]:
    """The model part; as in tiktoken, a piece that is a token as a whole is that token."""
    return {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def byte_level(model: dict[str, Any], pattern: str | None) -> dict[str, Any]:
    """A whole tokenizer on bytes; without a pattern, texts are cut as GPT-2 cuts them."""
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pattern is None}
    before: dict[str, Any] = to_bytes
    if pattern is not None:
        cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        before = {"type": "Sequence", "pretokenizers": [cut, to_bytes]}
    return whole(model, before, {**to_bytes, "use_regex": True})


def characters(points: Sequence[int]) -> dict[str, Any]:
    """A whole tokenizer on characters; its unknown token is none of them, so that an unknown character is an error."""
    cut = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "WordLevel",
        "vocab": {chr(point): i for i, point in enumerate(points)},
        "unk_token": "no such character",
    }
    return whole(model, cut, {"type": "Fuse"})


def whole(model: dict[str, Any], before: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    """All parts, in the order of the library's own files."""
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    return {
        "version": "1.0",
        **nothing,
        "added_tokens": [],
        "pre_tokenizer": before,
        "decoder": decoder,
        "model": model,
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
