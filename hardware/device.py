"""The device a benchmark runs on: its name, its memory, which number formats it computes in."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")

KINDS = ("cuda", "mps", "cpu")

# Lowest CUDA compute capability at which a format runs on tensor cores (fp32 and fp16 run on every CUDA device).
# Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#tensor-cores-warp-matrix-functions
CUDA_FORMATS = {"fp32": (0, 0), "fp16": (0, 0), "tf32": (8, 0), "bf16": (8, 0), "fp8": (8, 9)}


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of accelerator, or the processor, as far as a benchmark cares.

    Args:
        kind: "cuda", "mps" or "cpu".
        name: as the driver or the system reports it.
        slug: lower-case letters, digits and dashes; names this device's folder of records.
        memory_bytes: the accelerator's memory; the system's for a processor.
        capability: CUDA compute capability, None elsewhere.
        count: accelerators visible; for a processor, cores this process may use.
    """

    kind: str
    name: str
    slug: str
    memory_bytes: int
    capability: tuple[int, int] | None
    count: int

    def torch_device(self, index: int = 0) -> "torch.device":
        """The torch device to put tensors on; a processor has only one."""
        import torch

        return torch.device(self.kind, index) if self.kind == "cuda" else torch.device(self.kind)

    def supports(self, number_format: str) -> bool:
        """Whether matrix products can be computed in this format.

        A processor always has bf16 and fp16, perhaps slowly: whether they pay is for the benchmark to say.

        Args:
            number_format: "fp32", "tf32", "bf16", "fp16" or "fp8".

        Raises:
            ValueError: the format is none of these.
        """
        if number_format not in CUDA_FORMATS:
            raise ValueError(f"number_format is {number_format!r}; choose one of {', '.join(CUDA_FORMATS)}")
        if self.kind == "cuda":
            assert self.capability is not None
            return self.capability >= CUDA_FORMATS[number_format]
        return number_format in ("fp32", "bf16", "fp16")

    def synchronize(self) -> None:
        """Waits until everything queued on the device has run."""
        import torch

        if self.kind == "cuda":
            torch.cuda.synchronize()
        elif self.kind == "mps":
            torch.mps.synchronize()


def detect(kind: str | None = None) -> Device:
    """Finds the device to run on: a CUDA GPU, else Apple's, else the processor.

    Args:
        kind: insist on "cuda", "mps" or "cpu".

    Raises:
        ValueError: the kind is unknown, or no such device is visible.
    """
    import torch

    if kind not in (None, *KINDS):
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    chosen = kind or next(k for k in KINDS if available[k])
    if not available[chosen]:
        usable = ", ".join(k for k in KINDS if available[k])
        raise ValueError(f"kind is {kind!r}, but torch {torch.__version__} sees no such device; choose from: {usable}")
    if chosen == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return Device(
            kind="cuda",
            name=properties.name,
            slug=slugify(properties.name),
            memory_bytes=properties.total_memory,
            capability=(properties.major, properties.minor),
            count=torch.cuda.device_count(),
        )
    name = cpu_name()  # on Apple's chips the processor and the GPU share one name and one memory
    cores = usable_cores()
    if chosen == "mps":
        slug, count = slugify(f"mps {name}"), 1
    else:
        slug, count = slugify(f"cpu {name} {cores} core{'s' if cores > 1 else ''}"), cores
    return Device(kind=chosen, name=name, slug=slug, memory_bytes=system_memory(), capability=None, count=count)


def slugify(text: str) -> str:
    """Lower-case letters and digits, everything else one dash."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def usable_cores() -> int:
    """Cores this process may use, which in a container or a job can be fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores


def system_memory() -> int:
    """Bytes of main memory, or of what a container may use of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return min(physical, int(limit)) if limit.isdecimal() else physical


def _cgroup(name: str) -> str:
    """A limit of this container's control group (version 2), empty where there is none."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name without trademarks and clock, or the architecture where nobody tells a name."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    name = match[1] if match else _name_from_tools()
    name = re.sub(r"\((R|TM|C)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", name, flags=re.IGNORECASE)
    return " ".join(name.split()) or platform.machine()


def _name_from_tools() -> str:
    # ARM kernels print part numbers instead of a name, which lscpu can translate; macOS has no /proc at all.
    command = ["sysctl", "-n", "machdep.cpu.brand_string"] if platform.system() == "Darwin" else ["lscpu"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=5, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if platform.system() == "Darwin":
        return output.stdout.strip()
    match = re.search(r"^Model name:\s*(\S.*)$", output.stdout, re.MULTILINE)
    return match[1] if match and match[1] != "-" else ""
