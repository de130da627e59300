"""Token shards of other projects, read where they lie; none of them has a checksum, so less of them can be checked.

    nanoGPT                 train.bin, val.bin           uint16 and nothing else
    build-nanogpt, pealm    NAME_train_000001.npy        a numpy array of uint16, an end-of-text id before each document
    llm.c                   NAME_train_000001.bin        256 int32 (magic 20240520, version 1, count), then uint16

Source: https://github.com/karpathy/nanoGPT, build-nanogpt, llm.c (dev/data/data_common.py).
"""

import os
import re
import struct
from pathlib import Path

import numpy as np

from data.shards import MAGIC, Shard, ShardError, open_plain, read_header

LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER_BYTES = 20240520, 1, 1024
# The header that numpy writes for a flat array, and no other: nothing of it is evaluated.
NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '<u([24])', 'fortran_order': False, 'shape': \((\d{1,15}),\), \} *\n", re.DOTALL
)
# Where "train" or "val" begins a word of a file's name; "valid" and "validation" do too.
SPLIT = re.compile(r"(?:^|[^a-z])(train|val)", re.IGNORECASE)
TOKENS_AT_ONCE = 100_000_000  # a larger file is given in stretches, so that opening one stays cheap


def find(folder: Path) -> dict[str, list[Path]]:
    """The files in a folder that are named like token shards, by split, in the order of their names."""
    found: dict[str, list[Path]] = {"train": [], "val": []}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".npy") and not path.name.startswith(".") and (match := SPLIT.search(path.stem)):
            found[match[1].lower()].append(path)
    return found


def read(path: Path, *, vocab_size: int, eot: int, tokenizer_sha256: str) -> list[Shard]:
    """One file of another project, or of ours, as shards.

    Args:
        path: a .bin or .npy file.
        vocab_size, eot, tokenizer_sha256: of the tokenizer that made it, which the file itself does not name.

    Raises:
        ShardError: the file is none of the kinds above, or is damaged in a way that shows.
    """
    with open_plain(path) as file:
        head, size = file.read(LLMC_HEADER_BYTES), os.fstat(file.fileno()).st_size
    if head.startswith(MAGIC):
        shard = read_header(path)
        if (shard.tokenizer_sha256, shard.vocab_size, shard.eot) != (tokenizer_sha256, vocab_size, eot):
            raise ShardError(f"{path} was made with another tokenizer; name that one")
        return [shard]
    offset, itemsize, count = _layout(path, head, size)
    if count < 1 or size != offset + count * itemsize:
        raise ShardError(
            f"{path} is damaged: it has {size:,} bytes, and {count:,} tokens of {itemsize} bytes after {offset} "
            f"would be {offset + count * itemsize:,}"
        )
    return [
        Shard(
            path=path,
            offset=offset + start * itemsize,
            dtype=np.dtype(f"<u{itemsize}"),
            num_tokens=min(TOKENS_AT_ONCE, count - start),
            vocab_size=vocab_size,
            eot=eot,
        )
        for start in range(0, count, TOKENS_AT_ONCE)
    ]


def _layout(path: Path, head: bytes, size: int) -> tuple[int, int, int]:
    """Bytes before the tokens, bytes per token, and how many there are; the last is not checked yet."""
    if path.suffix == ".npy":
        match = NPY.match(head)
        if not match or match.end() != 10 + int.from_bytes(match[1], "little"):
            raise ShardError(f"{path} is not a flat numpy array of uint16 or uint32; nothing else is read from .npy")
        return match.end(), int(match[2]), int(match[3])
    if len(head) >= 12:
        magic, version, count = struct.unpack_from("<3i", head)
        if magic == LLMC_MAGIC:
            if version != LLMC_VERSION or len(head) < LLMC_HEADER_BYTES:
                raise ShardError(f"{path} is a shard of llm.c, damaged or of version {version}; version 1 is read")
            return LLMC_HEADER_BYTES, 2, count
    return 0, 2, size // 2
