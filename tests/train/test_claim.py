"""Whose folder it is, and whose checkpoint the run goes on from: restarted by torchrun, or on machines without a shared disk."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train import tiny
from train.lock import LockError, RunLock
from train.resume import claim

APART = """
import os, sys
from stepladder.cli import main
at = sys.argv.index("--run-dir") + 1
sys.argv[at] = os.path.join(sys.argv[at], "machine-" + os.environ["RANK"])
sys.exit(main(sys.argv[1:]))
"""


def claimed(run_dir: Path, *, resuming: bool, asked: bool) -> None:
    lock = RunLock(run_dir)
    try:
        claim(lock, resuming, asked=asked)
    finally:
        lock.__exit__(None, None, None)


def test_a_restart_goes_on_with_its_own_run_alone(tmp_path: Path, monkeypatch) -> None:
    """torchrun restarts processes with the command they began with: whether the folder is theirs, the folder says."""
    run_dir = tmp_path / "run"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    claimed(run_dir, resuming=False, asked=False)
    (run_dir / "checkpoints" / "step-00000005").mkdir(parents=True)
    claimed(run_dir, resuming=True, asked=False)  # restarted
    with pytest.raises(ValueError, match="already holds a run; go on with --resume"):
        claimed(run_dir, resuming=False, asked=False)  # begun again by mistake
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    with pytest.raises(ValueError, match="already holds a run; go on with --resume"):
        claimed(run_dir, resuming=True, asked=False)  # another run, whose process died before it saved anything
    claimed(run_dir, resuming=True, asked=True)
    claimed(run_dir, resuming=True, asked=False)  # the run is the second's now


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(LockError, match="lock is a link, not a file"), RunLock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_machines_without_a_shared_disk(tmp_path: Path) -> None:
    """The first machine's checkpoint serves all; one that is newer elsewhere is not passed over in silence."""
    program = tmp_path / "apart.py"
    program.write_text(APART)

    def run(*more: str) -> subprocess.CompletedProcess:
        command = tiny.command(
            tmp_path, "--run-dir", str(tmp_path / "run"), "--set", "train.micro_batch=2", "--set", "samples.every=0",
            "--set", "train.min_learning_rate=1e-3", *more, processes=2,
        )  # fmt: skip
        at = command.index("-m", command.index("--standalone"))
        command[at : at + 2] = [str(program)]
        return subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True, timeout=120)

    first, second = (tmp_path / "run" / f"machine-{rank}" for rank in (0, 1))
    assert run("--steps", "10").returncode == 0
    assert os.listdir(first / "checkpoints") and not (second / "checkpoints").exists()
    done = run("--steps", "15", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny.rows(first, "start")[-1]["resumed"]
    tiny.run(tmp_path, "whole", {"train.min_learning_rate": 1e-3, "train.steps": 15, "samples.every": 0})
    assert tiny.losses(first) == pytest.approx(tiny.losses(tmp_path / "whole"), abs=1e-5)

    shutil.copytree(first / "checkpoints", second / "checkpoints")
    os.rename(second / "checkpoints" / "step-00000015", second / "checkpoints" / "step-00000020")
    done = run("--steps", "20", "--resume")
    output = done.stdout + done.stderr
    assert done.returncode != 0 and output.count("error: ") == 1, output
    assert f"error: rank 1 sees step 20 in {first}, rank 0 only step 15; share the folder" in output, output
