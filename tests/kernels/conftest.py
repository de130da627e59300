"""Kernels under test run on the GPU where there is one, else in Triton's interpreter.

Whether a kernel is interpreted is decided where ``@triton.jit`` stands, so TRITON_INTERPRET is set while the kernels
are imported, before any test runs, and again in every test of this folder, for the copies that tests make of them.
(tests/conftest.py has imported Triton so.)
"""

import importlib
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

import kernels

INTERPRETED = not torch.cuda.is_available()


def once_per_launch(patch_language: Callable) -> Callable:
    """Whenever one jitted function calls another, Triton's interpreter puts its own functions in the language's place
    again, which takes up to a third of its time. Once for each module of a launch is enough."""
    patched: set[int] = set()

    def patch(function: Callable):
        module, is_launch = id(function.__globals__), not patched
        if module in patched:
            return None  # nobody asks for it but the launch
        scope = patch_language(function)
        patched.add(module)
        if is_launch:
            restore = scope.restore
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    return patch


if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    if INTERPRETED:
        from triton.runtime import interpreter as triton_interpreter

        if hasattr(triton_interpreter, "_patch_lang"):
            triton_interpreter._patch_lang = once_per_launch(triton_interpreter._patch_lang)
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setenv("TRITON_INTERPRET", "1")
        for module in pkgutil.iter_modules(kernels.__path__):
            importlib.import_module(f"kernels.{module.name}")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        if reason := kernels.unavailable("cpu", None):
            pytest.skip(reason)
