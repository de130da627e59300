"""What must work where kernels cannot run at all: importing, and saying why not."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import kernels

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_needs_triton_until_a_kernel_is_used() -> None:
    """In a process that has none: everything imports, the plain loss works, every rung that needs Triton says so."""
    script = """
import sys
sys.modules["triton"] = None
import torch, kernels, model, optim_ladder
from hardware import detect
assert kernels.unavailable("cuda", (9, 0)) == "needs the package triton, which is not installed"
config = model.GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=4, vocab_size=5)
idx = torch.zeros(1, 4, dtype=torch.int64)
assert model.GPT2(config)(idx, idx).isfinite()
cpu, workload = detect("cpu"), optim_ladder.Workload(model="pico")
assert "triton" in optim_ladder.rung("triton_cross_entropy").unavailable(cpu, workload)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "capability", "interpret", "reason"),
    [
        ("cuda", (9, 0), None, None),
        ("cuda", (8, 0), None, None),
        ("cuda", (7, 5), None, "needs an NVIDIA GPU of compute capability 8.0 or newer"),
        ("mps", None, None, "needs an NVIDIA GPU of compute capability 8.0 or newer"),
        ("cpu", None, None, "needs an NVIDIA GPU (for tests, "),
        ("cpu", None, "0", "needs an NVIDIA GPU (for tests, "),
        ("cpu", None, "1", None),
    ],
)
def test_the_reason_is_told(kind, capability, interpret, reason, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("kernels._interpreter_unavailable", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if interpret is not None:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    told = kernels.unavailable(kind, capability)
    assert told == reason or reason is not None and told.startswith(reason)


@pytest.mark.parametrize(("triton", "numpy", "works"), [
    ("3.6.0", "2.3.5", True), ("3.6.0", "2.4.0", False), ("3.7.1", "2.10.0", True), ("3.10.0+git1", "3.0.0rc1", True)
])  # fmt: skip
def test_an_interpreter_that_cannot_count_says_so(triton: str, numpy: str, works: bool, monkeypatch) -> None:
    """Triton 3.6 makes a loop's bound a number in a way that numpy has given up."""
    for name, version in (("triton", triton), ("numpy", numpy)):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=version))
    told = kernels._interpreter_unavailable.__wrapped__()
    assert told is None if works else "pip install 'numpy<2.4'" in told


@pytest.mark.parametrize(("variable", "installed", "works"), [
    (None, {"gcc"}, True), (None, {"clang"}, True), (None, {}, False), ("cc", {"gcc"}, False), ("cc", {"cc"}, True)
])  # fmt: skip
def test_without_a_c_compiler_nothing_can_be_launched(variable, installed, works, monkeypatch) -> None:
    """Triton takes the one that CC names, if it names one, and no other."""
    monkeypatch.delenv("CC", raising=False)
    if variable:
        monkeypatch.setenv("CC", variable)
    monkeypatch.setattr("kernels.shutil.which", lambda name: name if name in installed else None)
    told = kernels.unavailable("cuda", (9, 0))
    assert told is None if works else told.startswith("needs a C compiler")
