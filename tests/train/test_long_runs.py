"""What builds up: a run takes no more memory and no more files at its end than after its first minutes; and its curve is known."""

import json
import platform
import time
from pathlib import Path
from statistics import median

import psutil
import pytest
import torch

from hardware import detect
from tests.train import tiny
from tests.train.test_kills import finish, started, until_step  # noqa: F401

GOLDEN = Path(__file__).with_name("golden_losses.json")


def test_the_golden_curve(tmp_path: Path) -> None:
    """Exact on the torch and processor it was written with, to 1e-5 elsewhere. Written anew by: python -m tests.train.test_long_runs"""
    golden = json.loads(GOLDEN.read_text())
    torch.set_num_threads(golden["threads"])
    tiny.run(tmp_path, changes={"model.dropout": 0.0})
    found = list(tiny.losses(tmp_path / "run").values())
    if (torch.__version__, detect("cpu").name, platform.machine()) == tuple(golden["where"]):
        assert found == golden["losses"]
    assert found == pytest.approx(golden["losses"], abs=1e-5)


def grown(folder: Path, steps: int, started: list) -> tuple[list[int], list[int]]:  # noqa: F811
    """Resident bytes and open files, sampled over a run's later nine tenths."""
    changes = {"train.steps": steps, "checkpoints.every": 50, "validation.every": 100, "samples.every": 200}
    flags = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    process = tiny.start(tiny.command(folder, "--run-dir", str(folder / "run"), *flags))
    started.append(process)
    assert until_step(process, folder / "run", steps // 10)
    memory, files, seen = [], [], psutil.Process(process.pid)
    metrics = folder / "run" / "metrics.jsonl"
    while process.poll() is None and '"kind": "stop"' not in metrics.read_text()[-200:]:  # then the chart is drawn
        with seen.oneshot():
            memory.append(seen.memory_info().rss)
            files.append(seen.num_fds())
        time.sleep(0.02)
    output = finish(process)
    assert process.returncode == 0, output
    return memory, files


def test_files_are_closed(tmp_path: Path, started: list) -> None:  # noqa: F811
    _, files = grown(tmp_path, 400, started)
    half = len(files) // 2
    assert half > 5 and median(files[half:]) == median(files[:half]), files


@pytest.mark.soak
def test_five_thousand_steps(tmp_path: Path, started: list) -> None:  # noqa: F811
    memory, files = grown(tmp_path, 5000, started)
    tenth = len(memory) // 10
    before, after = median(memory[:tenth]), median(memory[-tenth:])
    print(f"\nresident memory {before / 1e6:.1f} -> {after / 1e6:.1f} MB, open files {min(files)} to {max(files)}")
    assert after <= 1.02 * before
    assert median(files[-tenth:]) == median(files[:tenth])


def write_golden() -> None:
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tiny.run(Path(folder), changes={"model.dropout": 0.0})
        losses = list(tiny.losses(Path(folder) / "run").values())
    where = [torch.__version__, detect("cpu").name, platform.machine()]
    GOLDEN.write_text(json.dumps({"where": where, "threads": 1, "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
