"""Text to token ids on every core: worker processes, batches through pipes, results in order, memory bounded.

Processes and not threads, because two threads in one tokenizer's library wait for each other (measured: two processes
give 1.9 × one thread, two threads between 1.1 × and 1.7 ×). Plain pipes and not multiprocessing, because a worker whose
parent is killed then reads the end of its file and leaves, and because nothing is pickled.

    parent ── number of texts, their lengths, which of them end a document, texts ──> worker (`serve`)
           <── failed or not, length, ids or the reason ─────────────────────────────
"""

import array
import itertools
import os
import queue
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from data import tokenizers
from data.documents import Piece
from data.tokenizers import END_OF_TEXT

BATCH_CHARACTERS = 1 << 20
MOST_WORKERS = 6  # of about 100 MB each, so that the whole stays below 1 GB on any machine
COUNT, ANSWER = struct.Struct("<Q"), struct.Struct("<QQ")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch of texts as ids.

    Args:
        ids: (any number,) uint32, an end-of-text id after every document that ends.
        texts: how many pieces of documents it holds.
        text_bytes: their length in UTF-8.
    """

    ids: np.ndarray
    texts: int
    text_bytes: int


def num_workers() -> int:
    """Processes that encode at once unless a user says otherwise: one per core, and not too many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def encode(pieces: Iterable[Piece], tokenizer: Path, *, workers: int) -> Iterator[Encoded]:
    """Encodes a stream of text; the result does not depend on how many workers there are.

    Args:
        pieces: documents, long ones in parts.
        tokenizer: file of a saved tokenizer.
        workers: processes to run; with 1, or with a text too short for them, this process does it.

    Raises:
        ValueError: the tokenizer cannot encode a text.
        OSError: a worker ended before its work.
    """
    groups = batches(pieces)
    begun = list(itertools.islice(groups, workers))
    groups = itertools.chain(begun, groups)
    if workers == 1 or len(begun) < workers:
        loaded = tokenizers.load(tokenizer)
        for group in groups:
            yield encode_batch(loaded, group)
        return
    with ExitStack() as stack:
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(Worker(tokenizer)))
        threads = ThreadPoolExecutor(workers)  # they only wait for pipes
        stack.callback(threads.shutdown, cancel_futures=True)

        def encode_somewhere(group: list[Piece]) -> Encoded:
            worker = idle.get()
            try:
                return worker.encode(group)
            finally:
                idle.put(worker)

        waiting = deque()
        for group in groups:
            waiting.append(threads.submit(encode_somewhere, group))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Groups pieces to about a million characters; where one group ends does not depend on what comes after it."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text) + 1
        if size >= BATCH_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def encode_batch(tokenizer: tokenizers.Tokenizer, pieces: list[Piece]) -> Encoded:
    """Encodes a batch in this process."""
    encode_marked = getattr(tokenizer, "encode_marked", None)  # tiktoken's: one call for many documents
    if encode_marked and not any(END_OF_TEXT in piece.text for piece in pieces):
        ids = [encode_marked(text) for text in marked(pieces)]
    else:
        ids = []
        for encoded, piece in zip(tokenizer.encode([piece.text for piece in pieces]), pieces, strict=True):
            ids.append(array.array("I", encoded))  # three times as fast as numpy at taking in Python integers
            if piece.ends:
                ids[-1].append(tokenizer.eot)
    text_bytes = sum(len(piece.text.encode()) for piece in pieces)
    return Encoded(ids=np.concatenate(ids, dtype=np.uint32), texts=len(pieces), text_bytes=text_bytes)


def marked(pieces: Iterable[Piece]) -> Iterator[str]:
    """Documents joined, with the end-of-text mark written out; a cut within a document is kept."""
    text = []
    for piece in pieces:
        text.append(piece.text)
        if piece.ends:
            text.append(END_OF_TEXT)
        else:
            yield "".join(text)
            text = []
    if text:
        yield "".join(text)


class Worker:
    """A process that encodes, and this process's end of its two pipes."""

    def __init__(self, tokenizer: Path) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        self.process = subprocess.Popen(
            # -P: not from the folder that the user happens to be in, which may well have a "data" of its own
            [sys.executable, "-P", "-c", "from data.encoding import serve; serve()", str(tokenizer.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers itself
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
                "RAYON_NUM_THREADS": "1",  # Hugging Face tokenizers would start a thread per core in every worker
            },
        )

    def encode(self, pieces: list[Piece]) -> Encoded:
        """`encode_batch`, over there."""
        texts = [piece.text.encode() for piece in pieces]
        lengths = array.array("I", map(len, texts))
        try:
            ends = bytes(piece.ends for piece in pieces)
            self.process.stdin.writelines([COUNT.pack(len(pieces)), lengths.tobytes(), ends, b"".join(texts)])
            self.process.stdin.flush()
            failed, length = ANSWER.unpack(read(self.process.stdout, ANSWER.size))
            answer = read(self.process.stdout, length)
        except (BrokenPipeError, EOFError) as error:
            raise OSError(
                f"a tokenizing process ended with code {self.process.wait()} before its work; "
                "if memory is short, give fewer --workers"
            ) from error
        if failed:
            raise ValueError(answer.decode())
        return Encoded(ids=np.frombuffer(answer, np.uint32), texts=len(pieces), text_bytes=sum(lengths))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()  # it holds nothing that could be lost
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def read(pipe: IO[bytes], length: int) -> bytes:
    """Exactly so many bytes.

    Raises:
        EOFError: the other end is gone.
    """
    message = pipe.read(length)
    if len(message) < length:
        raise EOFError
    return message


def serve() -> None:
    """A worker's life: loads the tokenizer it is given, and encodes what comes until nothing comes any more."""
    tokenizer = tokenizers.load(Path(sys.argv[1]))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent has left, or both were asked to
        while True:
            (count,) = COUNT.unpack(read(source, COUNT.size))
            lengths = array.array("I", read(source, 4 * count))
            pieces = [Piece(read(source, n).decode(), bool(ends)) for ends, n in zip(read(source, count), lengths)]
            try:
                failed, answer = 0, encode_batch(tokenizer, pieces).ids.tobytes()
            except ValueError as error:
                failed, answer = 1, str(error).encode()
            sink.writelines([ANSWER.pack(failed, len(answer)), answer])
            sink.flush()
