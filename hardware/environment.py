"""Everything around a measurement that may explain it: versions, clocks, limits, the code's own state.

Records are published, so nothing that names a person, a machine or a place on a disk may enter: no host name, no user,
no path.
"""

import getpass
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hardware.device import Device, cpu_name, usable_cores
from hardware.nvidia_smi import gpu_id

# Packages whose code decides what is computed and how it is timed.
HARNESS_PACKAGES = ("bench", "optim_ladder", "model", "kernels", "hardware", "data")
# Reading and drawing records, and writing about them, changes nothing that was measured.
NOT_SOURCES = ("results", "plots", "README.md", "LOG.md")

SPEED_VARIABLES = re.compile(
    r"(OMP|MKL|KMP|GOMP|NCCL|TRITON|PYTORCH|CUBLAS|CUDA)_\w+|TORCH\w*|NVIDIA_TF32_OVERRIDE|LD_PRELOAD"
)
# Plain settings such as "max_split_size_mb:128" or "0,1": no path, no address, no e-mail.
PLAIN_VALUE = re.compile(r"[\w.,:+=\- ]{0,100}", re.ASCII)
ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+|\b[0-9a-f]{8}-[0-9a-f]{4}-|::", re.IGNORECASE)

NVIDIA_SMI_FIELDS = {
    "driver": "driver_version",
    "power_limit_w": "power.limit",
    "persistence_mode": "persistence_mode",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_max_mhz": "clocks.max.mem",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
}


def capture(device: Device, root: Path) -> dict[str, Any]:
    """What surrounds a measurement, as plain JSON values; None stands for "not to be known here".

    Args:
        device: the device measured.
        root: the repository.
    """
    import torch

    cudnn = torch.backends.cudnn.version() if device.kind == "cuda" else None
    return {
        "device": device.name,
        "memory_bytes": device.memory_bytes,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "os": _system(),
        "cpu": cpu_name(),
        "cpu_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        **_gpu_state(device),
        **git_state(root),
        "harness_sha256": source_hash(root, HARNESS_PACKAGES),
        "variables": speed_variables(os.environ),
    }


def source_hash(root: Path, packages: Iterable[str]) -> str:
    """SHA-256 over the names and contents of all .py files of some packages, in sorted order.

    Args:
        root: folder the packages lie in.
        packages: their names; one that does not exist adds nothing.
    """
    digest = hashlib.sha256()
    files = [file for package in packages for file in (root / package).rglob("*.py")]
    for file in sorted(files, key=lambda f: f.relative_to(root).as_posix()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def git_state(root: Path) -> dict[str, Any]:
    """{"commit": …, "dirty": …}; both None without git, without a commit, or where root is not the repository's top."""
    prefix = _output(["git", "-C", str(root), "rev-parse", "--show-prefix"])
    commit = _output(["git", "-C", str(root), "rev-parse", "--verify", "HEAD"])
    excluded = [f":(exclude){name}" for name in NOT_SOURCES]
    changes = _output(["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--", ".", *excluded])
    if prefix != "" or commit is None or changes is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def speed_variables(environ: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """Environment variables that change speed; a value that could name a place or a person becomes "set"."""
    names = [re.escape(name) for name in (socket.gethostname(), _user()) if name]
    private = re.compile(rf"\b({'|'.join(names)})\b", re.IGNORECASE) if names else re.compile(r"(?!)")
    kept = {}
    for name, value in sorted(environ.items()):
        if SPEED_VARIABLES.fullmatch(name):
            plain = PLAIN_VALUE.fullmatch(value) and not ADDRESS.search(value) and not private.search(value)
            kept[name] = value if plain else "set"
    return kept


def _gpu_state(device: Device) -> dict[str, Any]:
    if device.kind != "cuda":
        return {}
    state: dict[str, Any] = dict.fromkeys(NVIDIA_SMI_FIELDS)
    query = f"--query-gpu={','.join(NVIDIA_SMI_FIELDS.values())}"
    output = _output(["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={gpu_id(0)}"])
    values = [text.strip() for text in output.split(",")] if output else []
    if len(values) == len(state):
        for name, text in zip(state, values, strict=True):
            known = not text.startswith("[")  # "[N/A]", "[Not Supported]"
            state[name] = (float(text) if name.endswith(("_w", "_mhz")) else text) if known else None
    return state


def _system() -> str:
    # The release's first numbers only: whoever builds a kernel may put any name behind them.
    release = re.match(r"[\d.]+", platform.release())
    return f"{platform.system()} {release[0].rstrip('.') if release else ''}".strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return ""


def _output(command: list[str]) -> str | None:
    """Standard output of a command, stripped; None where it is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
