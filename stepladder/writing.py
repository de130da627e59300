"""A prompt in, text out: what `stepladder sample` does with characters."""

import codecs
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from data.tokenizers import Tokenizer

STDIN = Path("-")


def read_prompt(prompt: str | None, file: Path | None) -> str | None:
    """The prompt a user means; None where there is none.

    Raises:
        ValueError: it is empty, given twice, or not UTF-8.
        OSError: the file cannot be read.
    """
    if prompt is not None and file is not None:
        raise ValueError("--prompt and --prompt-file both say what to go on from; give one of them")
    if file is not None:
        content = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
        try:
            prompt = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            where = "stdin" if file == STDIN else file
            found = f"byte 0x{content[error.start]:02x} at place {error.start}"
            raise ValueError(f"{where} is not UTF-8 text ({found}); convert it, e.g. with iconv -t utf-8") from None
    elif prompt is not None and not prompt.isascii():
        try:
            prompt.encode()
        except UnicodeEncodeError:  # what the shell gave is kept in half characters
            raise ValueError("--prompt is not UTF-8 text; convert it, or write with a UTF-8 terminal") from None
    if prompt == "":
        raise ValueError("the prompt is empty; write something, or leave it out to begin a new document")
    return prompt


def stops(tokenizer: "Tokenizer") -> bool:
    """Whether a document ends with a mark of its own: of characters and bytes it is a newline, as text has many."""
    from data.tokenizers import BytePairTokenizer

    return isinstance(tokenizer, BytePairTokenizer)


def show(
    written: "Iterator[Tensor]", tokenizer: "Tokenizer", prompt: str, *, num: int, stop: bool, told: Callable[[], bool]
) -> None:
    """Prints one sample as it is written; several one after the other, when all are done or it was told to stop.

    Args:
        written: (num,) ids at a time.
        tokenizer: of the ids.
        prompt: what stands before every sample.
        num: samples.
        stop: a sample ends with its document.
        told: whether to stop at once.
    """
    from data.token_bytes import token_bytes
    from data.tokenizers import END_OF_TEXT

    pieces = token_bytes(tokenizer)
    pieces[tokenizer.eot] = pieces[tokenizer.eot] or END_OF_TEXT.encode()
    stream, samples, ended = Stream(pieces), [[] for _ in range(num)], [False] * num
    begun, first_ms = time.perf_counter(), 0.0
    print(prompt if num == 1 else "", end="", flush=True)
    for tokens in written:
        first_ms = first_ms or (time.perf_counter() - begun) * 1e3
        for i, token in enumerate(tokens.tolist()):
            ended[i] |= stop and token == tokenizer.eot
            if not ended[i]:
                samples[i].append(token)
        if num == 1 and not ended[0]:
            print(stream(samples[0][-1]), end="", flush=True)
        if all(ended) or told():
            break
    seconds = time.perf_counter() - begun
    if num == 1:
        print(stream.rest())
    else:
        for i, ids in enumerate(samples, 1):
            print(f"[{i}/{num}]\n{prompt}{whole(pieces, ids)}\n")
    count = sum(map(len, samples))
    speed = f"{count:,} tokens in {seconds:.2f} s, {count / seconds:,.1f} tok/s; the first after {first_ms:,.0f} ms"
    print(speed, file=sys.stderr)


class Stream:
    """Text out of tokens, one by one, no character ever broken: the bytes of an unfinished one wait for the rest of it.

    Args:
        pieces: the bytes of every token id.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token: int) -> str:
        return self.decoder.decode(self.pieces[token])

    def rest(self) -> str:
        """What is left of a character that was never finished."""
        return self.decoder.decode(b"", final=True)


def whole(pieces: Sequence[bytes], ids: Sequence[int]) -> str:
    """The text of some tokens."""
    return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")
