"""Measured is trained: what the loop does around a step is next to nothing beside the step that the benchmark times."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from bench.launch import Launcher
from data.tokens import batches, load_tokens
from hardware import detect
from optim_ladder import Settings, TrainStep
from tests.train import tiny
from tests.train.tiny import ROOT
from train.feed import Feed
from train.loop import Loop

CHANGES = {
    "model.name": "nano", "train.seq_len": 512, "train.tokens_per_step": 1024, "train.micro_batch": 2, "train.steps": 24,
    "validation.every": 0, "samples.every": 0, "checkpoints.every": 100,
}  # fmt: skip


def test_a_step_is_nearly_all_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches from the feed, losses read and checked, rows written: under 1 % beside forward, backward and update."""
    seconds: dict[str, list[float]] = {}

    def timed(cls: type, name: str) -> None:
        real = getattr(cls, name)

        def measured(*args, **kwargs):
            begun = time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                seconds.setdefault(name, []).append(time.perf_counter() - begun)

        monkeypatch.setattr(cls, name, measured)

    for cls, name in ((Feed, "__next__"), (Loop, "_take"), (TrainStep, "backward"), (TrainStep, "update")):
        timed(cls, name)
    tiny.run(tmp_path, changes=CHANGES)
    total = {name: sum(values[4:]) for name, values in seconds.items()}
    step = total["backward"] + total["update"]
    around = total["_take"] - step + total["__next__"]
    print(f"\naround a step: {around / step:.2%} of it, of which waiting for batches {total['__next__'] / step:.2%}")
    assert around < 0.01 * step


@pytest.mark.soak
def test_a_run_is_as_fast_as_its_benchmark(tmp_path: Path) -> None:
    """The default recipe by a benchmark's worker and by a run, both alive and stepping in turn: within 3 % of each other."""
    rungs, device = ("bf16", "compile", "fused_adamw"), detect("cpu")
    launcher = Launcher(workdir=tmp_path, time_limit_s=300)
    command = [
        sys.executable, "-m", "stepladder", "train", "gpt2", "--rungs", ",".join(rungs), "--device", "cpu",
        "--corpora", str(tmp_path / "corpora"), "--set=validation.every=0", "--set=samples.every=0", "--set=checkpoints.every=9999",
    ]  # fmt: skip
    ratios = []
    with contextlib.ExitStack() as stack:
        stack.callback(launcher.close)
        for trial in range(3):
            run_dir = tmp_path / f"run-{trial}"
            run = subprocess.Popen(
                [*command, "--run-dir", str(run_dir)], cwd=ROOT, env=launcher.environment(), stdout=subprocess.DEVNULL
            )  # the same compiler cache
            stack.callback(run.kill)
            undisturbed(run, run_dir, 3)  # prepared, compiled, and stopped
            settings = Settings.from_dict(tiny.rows(run_dir, "start")[0]["settings"])
            job = {
                "suite": "ladder", "kind": "trial", "device": device.kind, "seed": 1337, "settings": settings.to_dict(),
                "trial": trial, "position": 0, "batches": str(batches_of(settings, tmp_path)), "num_blocks": 25,
            }  # fmt: skip
            worker = launcher.start(f"trial-{trial}", job, turns=True)
            of_run: list[float] = []
            while worker.advance():
                of_run += undisturbed(run, run_dir, 3)
            run.kill()
            assert worker.outcome.status == "ok", worker.outcome.reason
            benchmark_ms, run_ms = median(worker.outcome.result["device_ms"]), median(of_run)
            ratios.append(benchmark_ms / run_ms)
            print(f"\nbenchmark {benchmark_ms:.1f} ms a step, run {run_ms:.1f} ms: {ratios[-1]:.3f} of its speed", end="")
    assert abs(median(ratios) - 1) < 0.03


def undisturbed(run: subprocess.Popen, run_dir: Path, count: int) -> list[float]:
    """Lets a run go on for so many whole steps, then stops it again; milliseconds of each."""
    done = num_rows(run_dir)
    os.kill(run.pid, signal.SIGCONT)
    while num_rows(run_dir) <= done + count:  # in the first of them it had been stopped
        assert run.poll() is None
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGSTOP)
    return [row["step_ms"] for row in tiny.rows(run_dir)[done + 1 :][:count]]


def num_rows(run_dir: Path) -> int:
    """Steps so far. It is asked while the run has both cores, so lines are counted and not parsed."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b'"kind": "step"') if path.exists() else 0


def batches_of(settings: Settings, folder: Path) -> Path:
    w, path = settings.workload, folder / "batches.npz"
    tokens = load_tokens(w.vocab_size, corpora=folder / "corpora", progress=lambda line: None).tokens
    idx, targets = batches(tokens, micro_batch=w.sequences_per_step, seq_len=w.seq_len, count=8, seed=1337)
    np.savez(path, idx=idx, targets=targets)
    return path
