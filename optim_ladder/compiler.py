"""`torch.compile`, without what keeps PyTorch before 2.13 from ever ending."""

import atexit
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.torch_version import TorchVersion

GRACE_S = 5.0  # for the compiler's processes to end by themselves


def compiled(function: Callable[..., Any], **keywords: object) -> Callable[..., Any]:
    """`torch.compile(function, **keywords)`; whatever custom ops it has, compiling ends, and so does the process."""
    if TorchVersion(torch.__version__) < (2, 13):
        name_only()
        leave_in_time()
    return torch.compile(function, **keywords)


def name_only() -> None:
    """Lets the compiler name an operation in its log and errors without writing out all that its arguments come from.

    PyTorch 2.11 writes that out for every custom op it first meets, asked to log or not. With our layer norm and MLP
    the text in front of the cross-entropy is ten times longer with every block: 22 seconds after 4, for ever after 12.
    """
    from torch._inductor.exc import OperatorIssue

    OperatorIssue.operator_str = staticmethod(lambda target, args, kwargs: f"  target: {target}")


@cache  # once
def leave_in_time() -> None:
    """Ends the compiler's helper process where it does not end by itself.

    PyTorch waits up to five minutes for it as Python exits, and at times, when little was left to compile because the
    disk cache had it, it waits in vain.

    Source: https://github.com/pytorch/pytorch/issues/162199
    """
    from torch._inductor import async_compile  # registers to wait: what registers later runs earlier

    @atexit.register
    def all_of_them() -> None:
        for pool in async_compile._pool_set:
            if hasattr(pool, "process"):
                hurry(pool.process)


def hurry(process: subprocess.Popen) -> None:
    """Makes every wait for this process end within `GRACE_S`, the process with it."""
    process.wait = partial(wait_or_kill, process)


def wait_or_kill(process: subprocess.Popen, timeout: float | None = None) -> int:
    try:
        return type(process).wait(process, min(GRACE_S, timeout or GRACE_S))
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *children(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return type(process).wait(process)


def children(pid: int) -> list[int]:
    """Of a process' first thread; none where Linux does not tell."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
