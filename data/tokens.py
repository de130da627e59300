"""One stream of real tokens for a model's vocabulary, prepared once, checked at every use, and batches out of it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import stdlib, tokenizers

DOCUMENTS_AT_ONCE = 64  # bounds the memory that lists of Python integers take


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """A corpus as tokens.

    Args:
        tokens: (num_tokens,) uint16, one stream, an end-of-text id after every document (a newline for bytes).
        info: corpus, corpus_version, tokenizer, tokenizer_vocab_size, tokenizer_sha256, num_tokens, sha256 (of the
            stream, as little-endian bytes).
    """

    tokens: np.ndarray
    info: dict[str, Any]


def load_tokens(vocab_size: int, *, corpora: Path, progress: Callable[[str], object] | None = None) -> TokenSource:
    """The interpreter's standard library through the best tokenizer at hand, from the cache or made now.

    Args:
        vocab_size: ids the model knows.
        corpora: folder to keep prepared data in; made where missing.
        progress: called with a line of text now and then, e.g. `print`.

    Raises:
        ValueError: the vocabulary is too small for any tokenizer.
    """
    say = progress or (lambda line: None)
    name, make_tokenizer = tokenizers.choose(vocab_size)
    docs = stdlib.documents()
    version = stdlib.version(docs)
    folder = corpora / "stdlib" / f"{name}-{version}"
    wanted = {"corpus": "stdlib", "corpus_version": version, "tokenizer": name}
    if folder.exists():
        try:
            return _read(folder, wanted)
        except (OSError, ValueError, EOFError) as error:  # EOFError: numpy's word for an empty file
            say(f"{folder} is damaged ({error}): making it again")
            shutil.rmtree(folder)

    megabytes = sum(len(text) for _, text in docs) / 1e6
    say(f"preparing the standard library of Python {version}: {len(docs)} files, {megabytes:.1f} MB, tokenizer {name}")
    tokenizer = make_tokenizer(text for _, text in docs)
    tokens = encode_documents(docs, tokenizer)
    info = {
        **wanted,
        "tokenizer_vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "num_tokens": len(tokens),
        "sha256": _sha256(tokens),
    }
    _write(folder, tokens, info)
    say(f"{len(tokens):,} tokens in {folder}")
    return TokenSource(tokens=tokens, info=info)


def encode_documents(docs: list[stdlib.Document], tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """(num_tokens,) uint16: every document's ids, an end-of-text id after each."""
    parts = []
    for start in range(0, len(docs), DOCUMENTS_AT_ONCE):
        for ids in tokenizer.encode([text for _, text in docs[start : start + DOCUMENTS_AT_ONCE]]):
            parts.append(np.array([*ids, tokenizer.eot], dtype=np.uint16))
    return np.concatenate(parts)


def batches(
    tokens: np.ndarray, *, micro_batch: int, seq_len: int, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws micro-batches from random places of a stream, no place twice.

    Args:
        tokens: (num_tokens,) integers.
        micro_batch: sequences per micro-batch, B.
        seq_len: tokens per sequence, T.
        count: how many micro-batches.
        seed: the same seed draws the same batches.

    Returns:
        inputs and targets, both (count, B, T) int64; a target is the token after its input.

    Raises:
        ValueError: a size is not positive, or the stream has too few places.
    """
    for name, value in (("micro_batch", micro_batch), ("seq_len", seq_len), ("count", count)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    places, needed = len(tokens) - seq_len, count * micro_batch
    if places < needed:
        raise ValueError(
            f"tokens has {len(tokens)} entries, too few for count={count} times micro_batch={micro_batch} different "
            f"sequences of seq_len={seq_len} + 1; lower one of these or take a longer stream"
        )
    starts = np.random.default_rng(seed).choice(places, size=needed, replace=False)
    windows = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)  # (count * B, T + 1)
    windows = windows.reshape(count, micro_batch, seq_len + 1)
    return np.ascontiguousarray(windows[..., :-1]), np.ascontiguousarray(windows[..., 1:])


def _sha256(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()


def _read(folder: Path, wanted: dict[str, str]) -> TokenSource:
    """Reads a prepared folder; an OSError, ValueError or EOFError says what is wrong with it."""
    info = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    tokens = np.load(folder / "tokens.npy", allow_pickle=False)
    if not isinstance(info, dict) or not isinstance(tokens, np.ndarray) or tokens.dtype != np.uint16:
        raise ValueError("not a stream of uint16 with its description")
    if any(info.get(key) != value for key, value in wanted.items()):
        raise ValueError("its description is of something else")
    if tokens.shape != (info.get("num_tokens"),) or _sha256(tokens) != info.get("sha256"):
        raise ValueError("its checksum differs")
    return TokenSource(tokens=tokens, info=info)


def _write(folder: Path, tokens: np.ndarray, info: dict[str, Any]) -> None:
    """Writes beside the folder, then renames: a reader sees all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        np.save(temporary / "tokens.npy", tokens)
        (temporary / "meta.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        os.chmod(temporary, 0o755)  # mkdtemp makes folders that only their owner may read
        os.rename(temporary, folder)
    except OSError:
        # Another process may have finished first: what it made is the same.
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
