"""The bytes that every token id stands for, which decoding it alone may hide: a token may end inside a character."""

import json

from data.hf_tokenizer import alphabet
from data.tokenizer_files import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes of each id, by id; of an end-of-text mark, which no text has, there are none.

    Args:
        tokenizer: any kind; joined, the bytes of an encoded text's ids are the text's.

    Raises:
        ValueError: its kind is unknown.
    """
    content = tokenizer.to_json()
    match content["kind"]:
        case "bytes":
            return [bytes([value]) for value in range(256)]
        case "char":
            return [chr(point).encode() for point in content["characters"]]
        case "rustbpe":
            return [*(bytes.fromhex(token) for token in content["tokens"]), b""]
        case "hf-bpe":
            return _merged(content["merges"])
        case "gpt2":
            import tiktoken

            encoding = tiktoken.get_encoding("gpt2")
            return [*(encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)), b""]
    raise ValueError(f"tokenizer {tokenizer.name!r} is of the unknown kind {json.dumps(content['kind'])}")


def _merged(merges: list[int]) -> list[bytes]:
    """As `data.bpe.from_merges` counts them: the mark, the bytes in the library's order, what merges make."""
    characters = alphabet()
    parts = [b"", *(bytes([value]) for value in sorted(range(256), key=characters.__getitem__))]
    known = set(parts)
    for left, right in zip(merges[::2], merges[1::2], strict=True):
        whole = parts[left] + parts[right]
        if whole not in known:
            known.add(whole)
            parts.append(whole)
    return parts
