"""`torch.compile` as the rungs ask for it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import OperatorIssue

from optim_ladder import compiler, rung


class Unwritable:
    """An argument that takes for ever to be written out."""

    def __repr__(self) -> str:
        raise AssertionError("written out")


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what the rung changes."""
    monkeypatch.setattr(OperatorIssue, "operator_str", OperatorIssue.operator_str)


@pytest.mark.parametrize("name", ["compile", "max_autotune"])
def test_the_arguments_of_an_unknown_operation_are_not_written_out(
    name: str, messages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="written out"):
        OperatorIssue.operator_str("aten.mm", [Unwritable()], {})
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    rung(name).compile(torch.nn.Linear(1, 1))
    assert "aten.mm" in OperatorIssue.operator_str("aten.mm", [Unwritable()], {})


STAYS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_helper_that_stays_is_ended_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "GRACE_S", 0.1)
    with subprocess.Popen([sys.executable, "-c", STAYS], stdout=subprocess.PIPE, text=True) as helper:
        child = int(helper.stdout.readline())
        compiler.hurry(helper)
        start = time.monotonic()
        assert helper.wait(300) == -signal.SIGKILL and time.monotonic() - start < 30
        while sys.platform == "linux" and alive(child):
            assert time.monotonic() - start < 30


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_helper_that_leaves_is_let_go() -> None:
    helper = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    compiler.hurry(helper)
    assert helper.wait(300) == 3


HELPERS_AT_EXIT = """
import subprocess, sys
import torch
torch.__version__ = "2.11.0"
from optim_ladder import compiler
compiler.GRACE_S = 0.1
compiler.compiled(lambda x: x)
from torch._inductor import async_compile
staying = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
class Pool:
    process = staying
    def shutdown(self):
        print(staying.wait(300))
async_compile._pool_set.add(Pool())
"""


def test_python_leaves_however_long_pytorch_would_wait() -> None:
    found = subprocess.run([sys.executable, "-c", HELPERS_AT_EXIT], capture_output=True, text=True, timeout=100)
    assert found.stdout.strip() == f"{-signal.SIGKILL}", found.stderr
