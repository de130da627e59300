"""From text to a dataset: tokenized on every core, in bounded memory, and continued where it was cut off.

Shards end where a batch of texts ends, and a batch's end does not depend on what follows it. So a preparation that was
killed keeps every shard that is finished, skips the texts that the shards say they hold, and goes on to the same bytes.
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data import foreign, tokenizers
from data.corpora import corpus
from data.dataset import Dataset, DatasetError, describe, eot_in_text, open_dataset, open_foreign, shard_path, to_bytes
from data.documents import SPLITS, Corpus
from data.download import Progress
from data.encoding import encode, num_workers
from data.files import write_atomically
from data.shards import Shard, ShardError, ShardWriter, read_header
from data.tokenizers import bpe_size

SHARD_TOKENS = 100_000_000


def dataset(
    name_or_path: str | Path,
    tokenizer: str | None = None,
    *,
    corpora: Path,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The dataset that a user means, prepared where it has to be.

    Args:
        name_or_path: a corpus by name, a text file, a folder of them, a folder of another project's token shards
            (train.bin and val.bin, for example), or the folder of a prepared dataset.
        tokenizer: by name, see `data/tokenizers.py`; a prepared dataset has its own, and it may be left out.
        corpora, workers, progress: as for `prepare`.

    Raises:
        ValueError: it cannot be used; one line says why.
        OSError: something cannot be downloaded or written.
    """
    folder = Path(name_or_path)
    if (folder / "dataset.json").exists():
        found = open_dataset(folder)
        if tokenizer not in (None, found.info["tokenizer"]):
            raise DatasetError(
                f"{folder} was prepared with the tokenizer {found.info['tokenizer']!r}, not {tokenizer!r}; "
                "leave the tokenizer out, or prepare the text again"
            )
        return found
    if tokenizer is None:
        raise ValueError(f"{name_or_path} needs a tokenizer: name one, for example gpt2 or bpe-8k")
    if folder.is_dir() and any(foreign.find(folder).values()):
        if _learned(tokenizer):
            raise ValueError(
                f"{folder} holds tokens and no text to make a tokenizer {tokenizer!r} from; "
                "name the one they were made with"
            )
        return open_foreign(folder, tokenizers.resolve(tokenizer, corpora=corpora, texts=lambda split: []))
    return prepare(corpus(name_or_path), tokenizer, corpora=corpora, workers=workers, progress=progress)


def prepare(
    corpus: Corpus,
    tokenizer: str,
    *,
    corpora: Path,
    workers: int | None = None,
    progress: Progress | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Dataset:
    """Makes a dataset of a corpus, or finds it made.

    Two at once do not disturb each other: the second waits, and finds what the first has made.

    Args:
        corpus: what to tokenize.
        tokenizer: by name, see `data/tokenizers.py`.
        corpora: folder of all prepared data.
        workers: processes that tokenize; one per core by default. The result does not depend on it.
        progress: called now and then with what is done, bytes so far, and bytes in all where known.
        shard_tokens: a shard ends with the batch of texts that brings it to so many.

    Raises:
        ValueError: the corpus or the tokenizer cannot be used.
        OSError: something cannot be downloaded or written.
    """
    report = progress or (lambda what, done, total: None)
    for name, value in (("workers", workers), ("shard_tokens", shard_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    raw = corpora / "raw"
    corpus.fetch(raw, progress)
    version = corpus.version(raw)

    def resolve() -> tokenizers.Tokenizer:
        return tokenizers.resolve(
            tokenizer,
            corpora=corpora,
            texts=lambda split: corpus.documents(raw, split),
            progress=lambda line: report(line, 0, None),
        )

    if size := bpe_size(tokenizer):
        tokenizer = f"bpe-{size}"
    # A tokenizer that a user saved under a name is known by its hash; the others always mean the same.
    resolved = None if _learned(tokenizer) or tokenizer in ("gpt2", "bytes") else resolve()
    identity = [corpus.name, version, resolved.sha256 if resolved else tokenizer, shard_tokens]
    folder = corpora / corpus.name / f"{Path(tokenizer).stem}-{_digest(identity)[:8]}"
    description, kept = folder / "dataset.json", folder / "tokenizer.json"

    damaged = False
    if description.exists():
        try:
            return open_dataset(folder)
        except (DatasetError, ShardError) as error:
            damaged = True
            report(f"{error}: making again what is damaged", 0, None)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, report):
        with contextlib.suppress(DatasetError, ShardError):
            return open_dataset(folder)  # another process made it while this one waited
        report(f"preparing {corpus.name} for the tokenizer {tokenizer} in {folder}", 0, None)
        description.unlink(missing_ok=True)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        if _learned(tokenizer) and not damaged:  # one that a preparation had learned before it was cut off
            with contextlib.suppress(tokenizers.TokenizerError):
                resolved = tokenizers.load(kept)
        resolved = resolved or resolve()
        tokenizers.save(resolved, kept)
        work = _Work(
            corpus=corpus,
            raw=raw,
            folder=folder,
            tokenizer=resolved,
            identity=[*identity, resolved.sha256],
            shard_tokens=shard_tokens,
            workers=workers or num_workers(),
            report=report,
        )
        shards = {split: list(work.shards(split)) for split in SPLITS}
        about = {"corpus": corpus.name, "corpus_version": version, "tokenizer": resolved.name}
        info = describe(kept, shards, **about, eot_in_text=eot_in_text(resolved))
        write_atomically(description, to_bytes(info))
    return open_dataset(folder)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One preparation, as `prepare` has decided on it.

    Args:
        identity: what tells this dataset from any other.
    """

    corpus: Corpus
    raw: Path
    folder: Path
    tokenizer: tokenizers.Tokenizer
    identity: list[Any]
    shard_tokens: int
    workers: int
    report: Progress

    def shards(self, split: str) -> Iterator[Shard]:
        """The shards of a split, in their order: first those that are there, then those written now."""
        pieces = self.corpus.pieces(self.raw, split)
        index = done = 0
        while shard := self.finished(split, index):
            self.report(f"{self.corpus.name} {split}: keeping {shard.path.name}", done, None)
            yield shard
            for _ in islice(pieces, shard.texts):
                pass
            index, done = index + 1, done + shard.text_bytes
        for stale in self.folder.glob(f"{split}_*.bin"):
            if stale >= shard_path(self.folder, split, index):
                stale.unlink()
        with contextlib.closing(encode(pieces, self.folder / "tokenizer.json", workers=self.workers)) as batches:
            for batch in batches:
                with self.writer(split, index) as writer:
                    while batch is not None:
                        writer.append(batch.ids, texts=batch.texts, text_bytes=batch.text_bytes)
                        done += batch.text_bytes
                        self.report(f"{self.corpus.name} {split}: tokenizing", done, None)
                        batch = next(batches, None) if writer.num_tokens < self.shard_tokens else None
                    yield writer.finish()
                index += 1
        if not index:
            raise DatasetError(f"corpus {self.corpus.name!r} has no text of split {split!r}; give it more documents")

    def finished(self, split: str, index: int) -> Shard | None:
        """A shard of an earlier preparation, if it is whole and the right one."""
        try:
            shard = read_header(shard_path(self.folder, split, index))
            shard.open()
        except ShardError:
            return None
        return shard if shard.origin == self.origin(split, index) else None

    def writer(self, split: str, index: int) -> ShardWriter:
        return ShardWriter(
            shard_path(self.folder, split, index),
            vocab_size=self.tokenizer.vocab_size,
            eot=self.tokenizer.eot,
            tokenizer_sha256=self.tokenizer.sha256,
            origin=self.origin(split, index),
        )

    def origin(self, split: str, index: int) -> str:
        return _digest([*self.identity, split, index])


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _learned(tokenizer: str) -> bool:
    """Whether a tokenizer of this name is made from the corpus."""
    return tokenizer == "char" or bpe_size(tokenizer) is not None


@contextlib.contextmanager
def _alone(folder: Path, report: Progress) -> Iterator[None]:
    """Holds a folder against other preparations; the lock goes with the process, however it ends."""
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that prepares {folder}", 0, None)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # some file systems have no locks
        yield
