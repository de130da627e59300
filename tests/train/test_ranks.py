"""Several processes train as one: the same numbers, the same decisions, and none waits for ever for another."""

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.train import tiny
from tests.train.test_kills import CHANGES, finish, kill_group, killed_again_and_again, started, until_step, whole  # noqa: F401

SHORT = {"train.steps": 12, "checkpoints.every": 6, "validation.every": 6, "samples.every": 0}


def flags(changes: dict) -> list[str]:
    return [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]


def of(process) -> list[psutil.Process]:
    """torchrun's workers in order of rank."""
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "stepladder" in " ".join(p.cmdline())]
    return sorted(workers, key=lambda p: int(p.environ()["RANK"]))


def trained(folder: Path, name: str, changes: dict, started: list, processes: int) -> Path:  # noqa: F811
    process = tiny.start(
        tiny.command(folder, "--run-dir", str(folder / name), *flags({**SHORT, **changes}), processes=processes)
    )
    started.append(process)
    output = finish(process)
    assert process.returncode == 0, output
    return folder / name


def test_two_processes_are_one_with_twice_the_accumulation(tmp_path: Path, started: list) -> None:  # noqa: F811
    """The same masks of dropout too: they hang on the micro-batch, not on the process."""
    changes = {**SHORT, "train.micro_batch": 2, "model.dropout": 0.2}
    tiny.run(tmp_path, "one", changes)  # 2 accumulated
    two = trained(tmp_path, "two", changes, started, 2)
    one_losses, two_losses = tiny.losses(tmp_path / "one"), tiny.losses(two)
    assert one_losses.keys() == two_losses.keys()
    for step, loss in one_losses.items():
        assert two_losses[step] == pytest.approx(loss, abs=1e-5)
    for one, two_val in zip(tiny.rows(tmp_path / "one", "val"), tiny.rows(two, "val"), strict=True):
        assert two_val["loss"] == pytest.approx(one["loss"], abs=1e-5) and two_val["tokens"] == one["tokens"]


def test_unequal_processes_weigh_their_tokens(tmp_path: Path, started: list) -> None:  # noqa: F811
    """Three sequences on one, one on the other: the same mean over tokens as four on one."""
    tiny.run(tmp_path, "one", {**SHORT, "train.micro_batch": 4})
    two = trained(tmp_path, "two", {"train.micro_batches": "[3,1]"}, started, 2)
    for step, loss in tiny.losses(tmp_path / "one").items():
        assert tiny.losses(two)[step] == pytest.approx(loss, abs=1e-5)


def test_a_change_of_world_size_sees_the_same_batches(tmp_path: Path, started: list) -> None:  # noqa: F811
    """Begun by two, gone on with by one."""
    changes = {**SHORT, "train.micro_batch": 2}
    tiny.run(tmp_path, "one", changes)
    process = tiny.start(
        tiny.command(tmp_path, "--run-dir", str(tmp_path / "two"), *flags(changes), processes=2)
    )
    started.append(process)
    assert until_step(process, tmp_path / "two", 4)
    of(process)[1].send_signal(signal.SIGTERM)  # one of the two is told, both leave
    output = finish(process)
    stop = tiny.rows(tmp_path / "two", "stop")[-1]
    assert stop["reason"] == "SIGTERM" and stop["step"] < 12, output
    assert "go on with: torchrun" in output
    tiny.run(tmp_path, "two", changes, resume=True)
    expected = tiny.losses(tmp_path / "one")
    assert tiny.losses(tmp_path / "two") == pytest.approx(expected, abs=1e-5)


def test_torchrun_starts_a_killed_process_again(tmp_path: Path, whole: Path, started: list) -> None:  # noqa: F811
    """A worker is killed; torchrun restarts both, and the curve is that of an undisturbed run of two."""
    changes = {**SHORT, "train.steps": 16, "checkpoints.every": 3, "train.micro_batch": 2}
    undisturbed = trained(tmp_path, "undisturbed", changes, started, 2)
    run_dir = tmp_path / "run"
    process = tiny.start(
        tiny.command(tmp_path, "--run-dir", str(run_dir), *flags(changes), processes=2, restarts=2)
    )
    started.append(process)
    assert until_step(process, run_dir, 7)
    of(process)[1].kill()
    output = finish(process)
    assert process.returncode == 0, output
    assert tiny.losses(run_dir) == tiny.losses(undisturbed)
    assert tiny.weights(run_dir, 16) == tiny.weights(undisturbed, 16)
    assert any(row["resumed"] for row in tiny.rows(run_dir, "start"))


@pytest.mark.soak
def test_two_processes_killed_ten_times(tmp_path: Path, started: list) -> None:  # noqa: F811
    alive = killed_again_and_again(tmp_path, 10, random.Random(3), started, processes=2)
    whole_dir = trained(tmp_path, "whole", {**CHANGES, "train.micro_batch": 2}, started, 2)
    assert tiny.losses(tmp_path / "run") == tiny.losses(whole_dir)
    assert tiny.weights(tmp_path / "run", 60) == tiny.weights(whole_dir, 60)
    print(f"\n{alive} kills of two living processes")


def test_a_process_that_stops_is_named(tmp_path: Path, started: list) -> None:  # noqa: F811
    run_dir = tmp_path / "run"
    changes = {**SHORT, "train.steps": 100000, "train.time_limit_s": 3, "train.micro_batch": 2}
    process = tiny.start(tiny.command(tmp_path, "--run-dir", str(run_dir), *flags(changes), processes=2))
    started.append(process)
    assert until_step(process, run_dir, 3)
    stopped = of(process)[1]
    stopped.suspend()
    begun, others = time.monotonic(), of(process)[0]
    others.wait(timeout=30)
    assert time.monotonic() - begun < 15
    stopped.kill()
    kill_group(process, signal.SIGTERM)
    output = finish(process)
    assert "rank 0 has waited 3 s" in output and "rank 1 has been silent" in output, output
    assert "train/loop.py" in (run_dir / "stacks" / "rank-0.txt").read_text()


@pytest.mark.parametrize(
    ("mistake", "said", "left"),
    [
        ("data.corpus=absent.txt", "absent.txt", {".lock", ".launch"}),  # met by the first process
        ("train.tokens_per_step=72", "take 64", set()),  # met by both
        ("train.stepz=3", "did you mean 'steps'", set()),  # before they have joined
    ],
)
def test_an_error_is_said_once(mistake, said, left, tmp_path: Path, started: list) -> None:  # noqa: F811
    process = tiny.start(
        tiny.command(tmp_path, "--run-dir", str(tmp_path / "x"), "--set", mistake, "--set", "train.micro_batch=2", processes=2)
    )
    started.append(process)
    output = finish(process)
    assert process.returncode != 0 and output.count("error: ") == 1 and said in output, output
    assert not left or set(os.listdir(tmp_path / "x")) == left


LEAVING = """
import os, signal, sys
from stepladder.cli import main
from train.loop import Loop
from train.ranks import Ranks

way, take, leave = sys.argv.pop(1), Loop._take, Ranks.__exit__

def third(loop, batch):
    if loop.progress.step == 2 and loop.ranks.first:
        if way == "alone":
            raise OSError("the first leaves alone")
        os.kill(os.getpid(), signal.SIGTERM)
    take(loop, batch)

def left(ranks, *error):
    leave(ranks, *error)
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    print(f"rank {ranks.rank} keeps {sum('gloo' in name for name in names)} threads of gloo", flush=True)

Loop._take, Ranks.__exit__ = third, left
print(f"rank {os.environ['RANK']} leaves with {main(sys.argv[1:])}", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a process's threads are read as Linux tells them")
@pytest.mark.parametrize(("way", "codes"), [("together", (143, 1)), ("alone", (2, 2))])
def test_no_thread_of_gloo_outlives_the_run(way, codes, tmp_path: Path, started: list) -> None:  # noqa: F811
    """One that asks for Python's lock while the interpreter ends aborts the process: none may be there by then."""
    program = tmp_path / "leaving.py"
    program.write_text(LEAVING)
    command = tiny.command(tmp_path, "--run-dir", str(tmp_path / "run"), *flags({**SHORT, "train.micro_batch": 2}), processes=2)
    at = command.index("-m", command.index("--standalone"))
    command[at : at + 2] = [str(program), way]
    process = tiny.start(command)
    started.append(process)
    output = finish(process)
    for rank, code in enumerate(codes):
        assert f"rank {rank} keeps 0 threads of gloo" in output and f"rank {rank} leaves with {code}" in output, output
