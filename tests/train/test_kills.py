"""Processes that are killed, stopped, told to leave: nothing is lost, and the run that goes on is the run that was."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.train import tiny

LONG = 120.0  # seconds after which a process of these tests counts as hung
STEPS = 60
CHANGES = {"train.steps": STEPS, "checkpoints.every": 4, "validation.every": 20, "samples.every": 30}
SET = [part for key, value in CHANGES.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny.run(folder, changes=CHANGES)
    return folder / "run"


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=LONG)
    return output


def until_step(process: subprocess.Popen, run_dir: Path, step: int) -> bool:
    """Waits until the run has written that step down; False when it ended before."""
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + LONG
    while process.poll() is None:
        if metrics.exists() and any(f'"step": {step},' in line for line in metrics.read_text().splitlines()[-40:]):
            return True
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.002)
    return False


def kill_group(process: subprocess.Popen, sign: int = signal.SIGKILL) -> None:
    """Signals a process and all it has started; torchrun's workers are no part of its group."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(sign)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        kill_group(process)
        process.wait()


def killed_again_and_again(folder: Path, kills: int, rng: random.Random, started: list, **torchrun: int) -> int:
    """Kills a run without warning at random steps and moments, resuming it each time; how many kills found it alive."""
    found_alive, run_dir = 0, folder / "run"
    halves = ["--set", "train.micro_batch=2"] if torchrun else []
    command = tiny.command(folder, "--run-dir", str(run_dir), "--resume", *SET, *halves, **torchrun)
    for _ in range(kills):
        process = tiny.start(command)
        started.append(process)
        reached = max(tiny.losses(run_dir), default=0) if (run_dir / "metrics.jsonl").exists() else 0
        if until_step(process, run_dir, min(STEPS, reached + rng.randrange(1, 6))):
            time.sleep(rng.random() * 0.02)  # anywhere within a step, a save, a validation
            found_alive += process.poll() is None
        kill_group(process)
        process.communicate()
        done = run_dir / "checkpoints" / f"step-{STEPS:08d}"
        if done.exists():
            break
    last = tiny.start(command)
    started.append(last)
    output = finish(last)
    assert last.returncode == 0, output
    return found_alive


def test_killed_without_warning(tmp_path: Path, whole: Path, started: list) -> None:
    assert killed_again_and_again(tmp_path, 5, random.Random(1), started) >= 4
    assert tiny.losses(tmp_path / "run") == tiny.losses(whole)
    assert tiny.weights(tmp_path / "run", STEPS) == tiny.weights(whole, STEPS)
    assert not [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]


@pytest.mark.soak
def test_killed_fifty_times(tmp_path: Path, whole: Path, started: list) -> None:
    alive, runs, rng = 0, 0, random.Random(2)
    while alive < 50:
        folder = tmp_path / str(runs)
        folder.mkdir()
        alive += killed_again_and_again(folder, 12, rng, started)
        runs += 1
        assert tiny.losses(folder / "run") == tiny.losses(whole)
        assert tiny.weights(folder / "run", STEPS) == tiny.weights(whole, STEPS)
    print(f"\n{alive} kills of a living run in {runs} runs: all curves and weights identical")


def test_told_to_leave(tmp_path: Path, whole: Path, started: list) -> None:
    """The run saves, says how to go on, and that very command goes on."""
    sign = signal.SIGINT
    run_dir = tmp_path / "run"
    process = tiny.start(tiny.command(tmp_path, "--run-dir", str(run_dir), *SET))
    started.append(process)
    assert until_step(process, run_dir, 7)
    process.send_signal(sign)
    output = finish(process)
    assert process.returncode == 128 + sign
    stopped = tiny.rows(run_dir, "stop")[-1]
    assert stopped["reason"] == sign.name
    assert max(tiny.losses(run_dir)) == stopped["step"]  # not one step lost
    assert (run_dir / "checkpoints" / f"step-{stopped['step']:08d}").exists()
    line = next(line for line in output.splitlines() if line.startswith("go on with: "))
    program, *words = line.removeprefix("go on with: ").split()
    assert program == "python"
    again = tiny.start([sys.executable, *words])
    started.append(again)
    output = finish(again)
    assert again.returncode == 0, output
    assert tiny.losses(run_dir) == tiny.losses(whole)


@pytest.mark.soak
def test_told_to_leave_while_compiling(tmp_path: Path, started: list) -> None:
    """Compiling cannot be interrupted; the run leaves with its first step saved, within torchrun's 30 seconds of grace."""
    run_dir = tmp_path / "run"
    process = tiny.start(
        tiny.command(tmp_path, "--run-dir", str(run_dir), "--rungs", "compile", *SET),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "compiled"),
    )
    started.append(process)
    for line in process.stdout:
        if "taking the first step" in line:
            break
    time.sleep(2.0)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM, output
    assert time.monotonic() - begun < 30
    assert tiny.rows(run_dir, "stop")[-1]["step"] == 1 == max(tiny.losses(run_dir))


def test_two_runs_on_one_folder(tmp_path: Path, started: list) -> None:
    run_dir = tmp_path / "run"
    first = tiny.start(tiny.command(tmp_path, "--run-dir", str(run_dir), *SET, "--set", "train.steps=100000"))
    started.append(first)
    assert until_step(first, run_dir, 1)
    second = tiny.start(tiny.command(tmp_path, "--run-dir", str(run_dir), "--resume", *SET))
    started.append(second)
    output = finish(second)
    assert second.returncode == 2 and f"is in use by process {first.pid}" in output, output
    assert first.poll() is None
