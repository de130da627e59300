"""What every kernel's launcher needs: the right device, and the fastest of a few configurations.

A kernel's speed hangs on its block sizes and on how many warps share a block, and the best choice differs from card to
card. So each kernel lists a few configurations, short enough that each can be compiled for every card under test; on a
GPU the first call with a new class of shapes times them all and keeps the answer on disk, under the device's name, the
kernel's source and the shape class. In the interpreter nothing is timed: the first configuration is taken.

Triton has an autotuner with a cache on disk too. This one is smaller and differs where it matters here: its key has
the name of the card and not only its architecture, it measures on scratch tensors (kernels here write over their
input), and a list of configurations is plain data that tests can go through without Triton's help.
"""

import hashlib
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache, wraps
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from kernels import unavailable

FLOATS = (torch.float16, torch.bfloat16, torch.float32)  # what kernels read and write; statistics are fp32 anyway
# What a multiprocessor's registers hold at a time: of each of eight tensors, and of warps with 64 registers.
RESIDENT_NUMBERS, RESIDENT_WARPS = 8192, 32

# Shared memory one block may ask for, in KiB, by compute capability: a multiprocessor's, less 1 KiB for the system.
# Source: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
SHARED_KIB = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}
SMALLEST_SHARED_KIB = min(SHARED_KIB.values())


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to run a kernel.

    Args:
        blocks: constexpr name -> value, as the kernel's signature has them.
        num_warps: of 32 threads, per program.
        num_stages: of loads that a pipelined loop keeps in flight.
        shared_kib: shared memory it may use; cards with less never see it. Tests hold the compiled kernel to it.
    """

    blocks: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 1
    shared_kib: int = SMALLEST_SHARED_KIB

    @property
    def keywords(self) -> dict[str, int]:
        """For the launch: ``kernel[grid](…, **configuration.keywords)``."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


def usable(configurations: Sequence[Configuration], capability: tuple[int, int]) -> list[Configuration]:
    """Those whose shared memory a card of this capability has; an unknown card counts as the smallest."""
    limit = SHARED_KIB.get(capability, SMALLEST_SHARED_KIB)
    return [c for c in configurations if c.shared_kib <= limit]


def require_device(tensor: Tensor) -> None:
    """Raises ValueError, in one line, where the kernels cannot run."""
    device = tensor.device
    if reason := _unavailable_on(device) if device.type == "cuda" else unavailable(device.type, None):
        raise ValueError(f"a Triton kernel cannot run on {device}: {reason}")


@cache  # every call of a kernel asks, and looking for a compiler takes longer than launching one
def _unavailable_on(device: torch.device) -> str | None:
    return unavailable(device.type, torch.cuda.get_device_capability(device))


def on_its_device(function: Callable) -> Callable:
    """For what an op does: makes the GPU of its first tensor the current one, which is where Triton launches."""

    @wraps(function)
    def guarded(*arguments, **keywords):
        with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
            return function(*arguments, **keywords)

    return guarded


def num_programs(device: torch.device, tile: int, num_warps: int) -> int:
    """Programs that fill the device once and then take turns at the work, if a tile has this many numbers."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return multiprocessors * max(1, min(RESIDENT_NUMBERS // tile, RESIDENT_WARPS // num_warps))


class Tuner:
    """Picks a kernel's configuration, and remembers what it picked.

    Args:
        kernel: a ``@triton.jit`` function.
        configurations: what to pick from; the first one must run on every card.
    """

    def __init__(self, kernel: triton.JITFunction, configurations: Sequence[Configuration]) -> None:
        self.kernel, self.configurations = kernel, configurations
        self.picked: dict[tuple[object, ...], Configuration] = {}

    def pick(
        self, device: torch.device, shape: Sequence[object], trial: Callable[[], Callable[[Configuration], object]]
    ) -> Configuration:
        """The fastest configuration for this class of shapes on this device.

        Args:
            device: where the kernel is about to run.
            shape: everything that may decide: sizes, rounded where many differ, dtypes, flags.
            trial: makes scratch tensors and returns a function that runs the kernel on them in a given configuration.
        """
        if device.type != "cuda":
            return self.configurations[0]
        question = (device, *shape)
        if question not in self.picked:
            choices = usable(self.configurations, torch.cuda.get_device_capability(device))
            if torch.cuda.is_current_stream_capturing():  # nothing can be timed now
                return choices[0]
            self.picked[question] = choices[self._fastest(device, shape, choices, trial)]
        return self.picked[question]

    def _fastest(self, device: torch.device, shape: Sequence[object], choices: Sequence[Configuration], trial) -> int:
        if len(choices) == 1:
            return 0
        name = torch.cuda.get_device_name(device)
        question = {
            "device": name,
            "kernel": self.kernel.cache_key,
            "triton": triton.__version__,
            "shape": [str(s) for s in shape],
            "configurations": [asdict(c) for c in choices],
        }
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
        folder = cache_folder() / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        path = folder / f"{self.kernel.__name__}-{digest}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):  # never measured, or damaged: measure
            milliseconds = json.loads(path.read_text())["milliseconds"]
            if len(milliseconds) == len(choices):
                return milliseconds.index(min(milliseconds))
        try:
            run = trial()
            milliseconds = [_milliseconds(run, c) for c in choices]
        except torch.OutOfMemoryError:  # beside a training that fills the card; it is not the training's fault
            warnings.warn(f"{name} has no memory left to time {self.kernel.__name__} in; it runs untuned", stacklevel=2)
            return 0
        if min(milliseconds) == math.inf:
            raise RuntimeError(f"no configuration of {self.kernel.__name__} fits {name}")
        with suppress(OSError):  # a home that cannot be written to costs the time again, nothing else
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
                json.dump({"question": question, "milliseconds": milliseconds}, file, indent=1)
            os.replace(file.name, path)
        return milliseconds.index(min(milliseconds))


def cache_folder() -> Path:
    """Where answers are kept: ``$XDG_CACHE_HOME/stepladder/kernels``, or the same under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepladder" / "kernels"


def _milliseconds(run: Callable[[Configuration], object], configuration: Configuration) -> float:
    try:
        return _bench(lambda: run(configuration))
    except OutOfResources:
        return math.inf


def _bench(function: Callable[[], object]) -> float:
    """Median over 50 ms, in milliseconds, the cache emptied before each call."""
    return triton.testing.do_bench(function, warmup=10, rep=50, return_mode="median")
