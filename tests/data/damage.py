"""Ways of damaging a file, and objects that would run code if they were unpickled."""

import builtins
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple


def flip(content: bytes, rng: Random) -> bytes:
    """One bit the other way."""
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def zero(content: bytes, rng: Random) -> bytes:
    """A stretch of zeros that had something else in it."""
    place = rng.choice([i for i, byte in enumerate(content) if byte])
    start = max(0, place - rng.randrange(32))
    stop = min(len(content), place + 1 + rng.randrange(32))
    return content[:start] + bytes(stop - start) + content[stop:]


def truncate(content: bytes, rng: Random) -> bytes:
    """Any part of the beginning."""
    return content[: rng.randrange(len(content))]


def extend(content: bytes, rng: Random) -> bytes:
    """More at the end."""
    return content + rng.randbytes(rng.randrange(1, 200))


def swap(content: bytes, rng: Random) -> bytes:
    """Two different bytes in each other's place."""
    while True:
        i, j = rng.randrange(len(content)), rng.randrange(len(content))
        if content[i] != content[j]:
            damaged = bytearray(content)
            damaged[i], damaged[j] = damaged[j], damaged[i]
            return bytes(damaged)


MUTATIONS: dict[str, Callable[[bytes, Random], bytes]] = {
    "flip": flip, "zero": zero, "truncate": truncate, "extend": extend, "swap": swap,
}  # fmt: skip


class Way(NamedTuple):
    """How a payload leaves a trace: a function and its arguments, given the path of the trace."""

    name: str
    call: Callable[[Path], tuple]


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, way: Way, trace: Path) -> None:
        self.way, self.trace = way, trace

    def __reduce__(self) -> tuple:
        return self.way.call(self.trace)


def payloads() -> list[Way]:
    """Eight of them."""
    make = "open({!r}, 'w').close()"
    return [
        Way("os.system", lambda trace: (os.system, (f"touch '{trace}'",))),
        Way("os.mkdir", lambda trace: (os.mkdir, (str(trace),))),
        Way("exec", lambda trace: (builtins.exec, (make.format(str(trace)),))),
        Way("eval", lambda trace: (builtins.eval, (make.format(str(trace)),))),
        Way("open", lambda trace: (open, (str(trace), "w"))),
        Way("touch", lambda trace: (Path.touch, (trace,))),
        Way("symlink", lambda trace: (os.symlink, (sys.executable, str(trace)))),
        Way("subprocess", lambda trace: (subprocess.call, (["touch", str(trace)],))),
    ]
