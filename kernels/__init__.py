"""Our own Triton kernels, one per file; each file can be read alone, from the reason to the public function.

Importing this package needs neither Triton nor a GPU; importing a kernel's file needs Triton. A kernel runs on NVIDIA
GPUs of compute capability 8.0 and newer. On a processor it runs in Triton's interpreter, number by number, which is
for tests: the same code, and far too slow for anything else.
"""

import os
import shutil
from functools import cache
from importlib.util import find_spec

OLDEST = (8, 0)  # the first with bf16 arithmetic


def unavailable(kind: str, capability: tuple[int, int] | None) -> str | None:
    """None where the kernels can run, else the reason, in words a user understands.

    Args:
        kind: of device: "cuda", "cpu", "mps".
        capability: CUDA compute capability, None elsewhere.
    """
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return _interpreter_unavailable()
    if kind == "cpu":
        return "needs an NVIDIA GPU (for tests, TRITON_INTERPRET=1 makes Triton's interpreter stand in for one)"
    if kind != "cuda" or capability is None or capability < OLDEST:
        return "needs an NVIDIA GPU of compute capability 8.0 or newer"
    # Triton compiles the code that launches a kernel.
    if not any(shutil.which(name) for name in ([os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
        return "needs a C compiler, named by the variable CC or on the PATH; install one, e.g. the package gcc"
    return None


@cache
def _interpreter_unavailable() -> str | None:
    import numpy
    import triton

    triton_version, numpy_version = (tuple(map(int, p.__version__.split(".")[:2])) for p in (triton, numpy))
    if triton_version < (3, 7) and numpy_version >= (2, 4):  # which makes no number of an array with a dimension
        return "Triton's interpreter works with numpy 2.4 and newer from Triton 3.7 on; pip install 'numpy<2.4'"
    return None
