"""Compile the model's forward and backward passes with torch.compile.

Eager PyTorch launches one kernel per operation, and each reads its input from memory and writes its output back. The compiler
traces the model once, fuses chains of pointwise operations and reductions (bias, GELU, residual, layer norm, softmax,
cross-entropy) into single kernels generated for this shape, and drops the Python between them. It pays most where memory
bandwidth or launch overhead is the limit; large matrix products stay with the vendor's library.

The price is paid once per shape: seconds to a minute before the first step ends, less when the disk cache has it.
"""

import os
import shutil
import sys
from importlib.util import find_spec

from hardware import Device
from optim_ladder.compiler import compiled
from optim_ladder.rung import REORDERED, Rung


def unavailable(device: Device, workload: object) -> str | None:
    if sys.platform == "win32":
        return "torch.compile is not supported by this project on Windows"
    if device.kind == "cuda" and find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if device.kind == "cuda" and device.capability is not None and device.capability < (7, 0):
        return "Triton needs an NVIDIA GPU of compute capability 7.0 or newer"
    names = [os.environ.get("CXX"), os.environ.get("CC"), "g++", "c++", "clang++", "gcc", "cc", "clang"]
    if not any(shutil.which(name) for name in names if name):
        return "needs a C or C++ compiler on the PATH; install one, e.g. the package g++"
    return None


RUNG = Rung(
    name="compile",
    title="torch.compile",
    source="https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    essay=__doc__,
    drift=REORDERED,
    slot="compiler",
    unavailable=unavailable,
    compile=compiled,
)
