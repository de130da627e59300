"""`pytest --benchmark` as a user runs it, in processes of its own, on a workload of a few milliseconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.ladder import LadderSession, make_plan
from bench.launch import ROOT, Launcher
from bench.plan import Schedule
from hardware import detect
from optim_ladder import LADDER
from results import store
from tests.bench import planted
from tests.bench.fakes import Silent, tokens

SMALL = ["--device", "cpu", "--micro-batch", "1", "--seq-len", "16"]


def benchmark(*arguments: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--benchmark", "-p", "no:cacheprovider", *SMALL, *arguments]
    # pytest-benchmark saves nothing in a process that looks like one of pytest-xdist's.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, **more)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    where = tmp_path_factory.mktemp("quick")
    return where, benchmark(
        "--quick", "--rungs", "tf32,flash,fused_adamw", f"--results-dir={where}",
        "--benchmark-json", str(where / "plugin.json"), "--benchmark-storage", f"file://{where}/saved", "--benchmark-autosave",
    )  # fmt: skip


def test_a_quick_run_measures_records_and_draws(quick) -> None:
    where, run = quick
    assert run.returncode == 0, run.stdout + run.stderr
    found, problems = store.load_all(where / "records")
    assert not problems and len(found) == 1
    path, record = found[0]
    assert (record.status, record.quick, record.profile) == ("complete", True, "cpu")
    assert {m.status for m in record.measurements.values()} == {"ok"}
    assert list(record.measurements) == ["baseline", "baseline-again", "flash", "flash+fused_adamw"]
    assert record.token_source["corpus"] == "stdlib"
    assert record.environment["harness_sha256"] and "torch" in record.environment
    assert (where / "charts" / record.device["slug"] / "ladder.png").stat().st_size > 10_000
    assert f"records/{record.device['slug']}/{path.name}" in run.stdout.replace("\n", "")
    for words in ("flash attention (SDPA)", "indicative", "skipped: needs the tensor cores", "[9/9", "trial 1 of flash: "):
        assert words in run.stdout


def test_pytest_benchmarks_own_json_holds_the_recorded_times(quick) -> None:
    where, run = quick
    found = json.loads((where / "plugin.json").read_text())
    (_, record), *_ = store.load_all(where / "records")[0]
    assert found["machine_info"]["device"] == record.device["name"]
    by_name = {b["param"]: b for b in found["benchmarks"]}
    assert by_name.keys() == record.measurements.keys()
    for name, measurement in record.measurements.items():
        seconds = [ms / 1e3 for t in measurement.trials for ms in t.device_ms]
        assert by_name[name]["stats"]["data"] == pytest.approx(seconds)
        assert by_name[name]["extra_info"]["tokens_per_second"] > 0
    assert "benchmark 'ladder': 4 tests" in run.stdout


@pytest.mark.soak
def test_pytest_benchmarks_own_compare_works(quick) -> None:
    where, _ = quick
    run = benchmark(
        "--quick", "--rungs", "flash", f"--results-dir={where / 'again'}",
        "--benchmark-storage", f"file://{where}/saved", "--benchmark-compare",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"test_setting\[flash\] \(0001_\w+\)", run.stdout) and "(NOW)" in run.stdout


def test_our_own_compare_and_plot_read_it(quick) -> None:
    where, _ = quick
    path = str(store.load_all(where / "records")[0][0][0])
    for arguments in (["compare", path, path], ["plot", "--results-dir", str(where)]):
        run = subprocess.run(
            [sys.executable, "-m", "stepladder", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rungs", "flsh"], "unknown rung 'flsh': did you mean 'flash'? choose from tf32"),
        (["--suite", "kernals"], "unknown suite 'kernals': did you mean 'kernels'? choose from ladder, sampling, kernels, all"),
        (["--micro-batch", "-2"], "--micro-batch is '-2'; it must be a positive integer"),
        (["--results-dir=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    run = benchmark("-q", *arguments)
    assert run.returncode == 2
    said = [line for line in (run.stdout + run.stderr).splitlines() if words in line]
    assert len(said) == 1 and "Traceback" not in run.stdout + run.stderr, run.stdout + run.stderr


def test_a_session_survives_workers_that_crash_die_and_run_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("optim_ladder.ladder.LADDER", (*LADDER, *planted.PLANTED))
    plan = make_plan(
        detect("cpu"), rungs=["crash", "die", "out_of_memory", "one_norm_forgotten"], derivation="single", quick=True,
        micro_batch=2, seq_len=16, results_dir=tmp_path, charts_dir=tmp_path,
    )  # fmt: skip
    launcher = Launcher(workdir=tmp_path, time_limit_s=120, module="tests.bench.planted")
    record = LadderSession(plan, tokens(), launcher, Silent()).measure()
    m = record.measurements
    assert record.status == "complete"
    assert (m["crash"].status, m["crash"].reason) == ("crashed", "parity run: RuntimeError: planted crash")
    assert m["die"].status == "crashed" and "SIGSEGV" in m["die"].reason
    assert m["out_of_memory"].status == "ok" and m["out_of_memory"].workload["micro_batch"] == 1
    assert m["out_of_memory"].workload["grad_accumulation"] == 2
    assert m["one_norm_forgotten"].status == "wrong" and "gradient of ln_f.weight" in m["one_norm_forgotten"].reason
    assert m["baseline"].status == "ok" and m["baseline"].parity.loss_drift == 0.0


def test_a_worker_that_hangs_is_ended_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("optim_ladder.ladder.LADDER", (*LADDER, *planted.PLANTED))
    plan = make_plan(detect("cpu"), rungs=["hang"], derivation="single", results_dir=tmp_path, charts_dir=tmp_path)
    job = {"suite": "ladder", "kind": "parity", "device": "cpu", "seed": 0, "settings": plan.settings["hang"].to_dict(), "batches": ""}
    worker = Launcher(workdir=tmp_path, time_limit_s=3, module="tests.bench.planted").start("hang", job)
    assert not worker.advance()
    assert worker.outcome.status == "hung"
    assert worker.outcome.reason == "no result after 3 s; raise --time-limit if it is just slow"
    assert worker.process.poll() is not None


@pytest.mark.soak
def test_two_gloo_processes_train_like_one(tmp_path: Path) -> None:
    """The same global batch in two processes: loss, gradients and norm within the bounds of reordered fp32."""
    plan = make_plan(
        detect("cpu"), rungs=["ddp"], derivation="scaling", quick=True, schedule=Schedule(time_limit_s=120),
        micro_batch=1, seq_len=16, results_dir=tmp_path, charts_dir=tmp_path,
    )  # fmt: skip
    if "ddp@2" not in plan.settings:
        pytest.skip("needs 2 cores")
    record = LadderSession(plan, tokens(), Launcher(workdir=tmp_path, time_limit_s=120), Silent()).measure()
    two = record.measurements["ddp@2"]
    assert two.status == "ok", two.reason
    assert two.parity.passed and two.parity.loss_bound == 2e-4
    assert two.trials[0].device_ms


@pytest.mark.soak
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--benchmark", *SMALL, "--rungs", "flash", f"--results-dir={tmp_path}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if "trial 1 of " in line:
            process.send_signal(signal.SIGINT)
            break
    output += process.stdout.readlines()
    assert process.wait(60) == 2, "".join(output)
    ((_, record),), _ = store.load_all(tmp_path / "records")
    assert record.status == "partial"
    assert any(m.trials for m in record.measurements.values())
    assert "partial" in "".join(output)
    deadline = time.monotonic() + 10  # no worker outlives the session
    while alive := subprocess.run(["pgrep", "-f", "bench.worker.*stepladder-"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


@pytest.mark.parametrize("path", ["bench", "bench/test_suites.py"])
def test_without_the_flag_nothing_is_measured(path: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-rs", path],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "::test_setting[" not in run.stdout and "rrors" not in run.stdout, run.stdout
