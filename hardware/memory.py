"""How much memory this process has taken."""

import re
import resource
import sys
from pathlib import Path

from hardware.device import Device


def peak_memory(device: Device) -> tuple[int, int | None]:
    """(allocated, reserved) bytes at their highest: the allocator's on a GPU, the whole process's on a CPU."""
    if device.kind == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    if sys.platform == "linux":  # getrusage counts what the parent held when it forked
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024, None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None
