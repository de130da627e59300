"""`stepladder profile` as a user meets it; workers answer at once."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench.launch
import data.tokens
import stepladder.profile
from bench.launch import Outcome
from bench.profile_sums import Traced
from hardware import detect
from results import profiles, store
from stepladder.cli import main
from tests.bench.fakes import FakeLauncher, tokens, trial
from tests.factories import make_record
from tests.made_profiles import MODEL, make_kernel


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A processor without records, text at hand, and a worker that has traced a slow GELU."""
    place = SimpleNamespace(
        records=tmp_path / "results" / "records", out=tmp_path / "out", launchers=[], fault=lambda job: None
    )
    kernels = [
        make_kernel("aten::gelu", 70.0, "aten::gelu", kind="operator"),
        make_kernel("aten::odd", 9.0, "aten::odd", kind="operator"),
    ]

    def answer(name: str, job: dict) -> Outcome | None:
        if job["kind"] != "profile":
            return None
        Path(job["trace"]).write_text("the trace")
        found = Traced(num_counted=2, step_ms=101.0, busy_ms=79.0, kernels=kernels, flags=[])
        return place.fault(job) or Outcome(
            status="ok", result={"trial": trial(job, 100.0), "model": MODEL, **asdict(found)}
        )

    def launcher(workdir: Path, time_limit_s: float) -> FakeLauncher:
        place.launchers.append(FakeLauncher(workdir, faults=answer))
        return place.launchers[-1]

    monkeypatch.setattr(bench.launch, "Launcher", launcher)
    monkeypatch.setattr(data.tokens, "load_tokens", lambda vocab_size, **more: tokens(vocab_size))
    monkeypatch.setattr(stepladder.profile, "RECORDS", place.records)
    monkeypatch.setenv("COLUMNS", "160")
    return place


@pytest.fixture
def run(capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["profile", "--device", "cpu", *arguments])
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), captured.err

    return command


def job_of(here: SimpleNamespace) -> dict:
    return here.launchers[-1].jobs[-1][1]


def test_parts_kernels_gaps_and_places_are_told_and_everything_is_kept(here, run) -> None:
    code, out, err = run("--results-dir", str(here.out), "--steps", "3")
    assert (code, err) == (0, "")
    assert "One step" in out and "GELU 70 ms" in out and "aten::odd other forward 12 9.000 9.0 %" in out
    assert (
        "1. GELU: 70 ms, 70 % of the step" in out and "2. Idle: for 21 ms, 21 % of the step, no operator runs." in out
    )
    assert (
        "3. Other: 9.0 ms, 9.0 % of the step, in what no rule knows; all of it aten::odd with 9.0 ms in 12 calls."
        in out
    )
    ((path, found),), problems = profiles.load_all(here.out / "profiles")
    assert not problems and str(path) in out.replace(" ", "") and found.num_steps == 3 and not found.custom
    assert sorted(f.name for f in (here.out / "charts").rglob("profile.*")) == ["profile.png", "profile.svg"]
    assert job_of(here)["num_steps"] == 3 and here.launchers[-1].closed


def test_options_say_what_is_profiled(here, run) -> None:
    arguments = (
        "--model",
        "mini",
        "--micro-batch",
        "2",
        "--seq-len",
        "64",
        "--rungs",
        "flash,fused_adamw",
        "--no-flash",
    )
    assert run("--results-dir", str(here.out), *arguments)[0] == 0
    job = job_of(here)
    assert job["settings"]["rungs"] == ["fused_adamw"]
    assert {key: job["settings"]["workload"][key] for key in ("model", "micro_batch", "seq_len")} == {
        "model": "mini",
        "micro_batch": 2,
        "seq_len": 64,
    }
    ((_, found),), _ = profiles.load_all(here.out / "profiles")
    assert found.custom
    assert run("--results-dir", str(here.out), "--rungs", "")[0] == 0 and job_of(here)["settings"]["rungs"] == []


def test_without_options_all_rungs_that_can_run_are_on(here, run) -> None:
    assert run("--results-dir", str(here.out), "--no-compile")[0] == 0
    rungs = job_of(here)["settings"]["rungs"]
    assert "fused_adamw" in rungs and not {"compile", "tf32", "ddp"} & set(rungs)


def test_best_takes_rungs_and_micro_batch_from_the_records(here, run) -> None:
    record, device = make_record("cpu"), detect("cpu")
    measured = {
        name: replace(m, workload=m.workload | {"seq_len": 512, "micro_batch": 3, "grad_accumulation": 2})
        for name, m in record.measurements.items()
    }
    there = record.device | {"slug": device.slug, "name": device.name}
    record = replace(record, device=there, workload=record.workload | {"seq_len": 512}, measurements=measured)
    store.write(record, here.records)
    code, out, _ = run("--best", "--results-dir", str(here.out))
    assert code == 0 and "best on" in out
    workload = job_of(here)["settings"]["workload"]
    assert (workload["micro_batch"], workload["grad_accumulation"]) == (3, 2)
    assert "fused_adamw" in job_of(here)["settings"]["rungs"]
    ((_, found),), _ = profiles.load_all(here.out / "profiles")
    assert not found.custom
    run("--best", "--micro-batch", "5", "--results-dir", str(here.out))
    assert job_of(here)["settings"]["workload"]["micro_batch"] == 5


def test_the_trace_itself_can_be_kept(here, run, tmp_path: Path) -> None:
    code, out, _ = run("--results-dir", str(here.out), "--trace", str(tmp_path / "trace.json"))
    assert code == 0 and (tmp_path / "trace.json").read_text() == "the trace" and "trace.json" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--best", "--rungs", "flash"), "--best and --rungs both"),
        (("--best",), "--best needs a record"),
        (("--rungs", "flahs"), "did you mean 'flash'"),
        (("--rungs", "tf32"), "'tf32' cannot run"),
        (("--no-flahs",), "unknown argument '--no-flahs': did you mean '--no-flash'"),
        (("--results_dri",), "unknown argument"),
        (("--model", "gpt3"), "unknown model 'gpt3'"),
        (("--model", "char-bigram"), "char-bigram"),
        (("--micro-batch", "0"), "micro_batch is 0"),
        (("--seq-len", "-1"), "seq_len is -1"),
        (("--steps", "0"), "--steps is 0"),
        (("--profile", "h1000"), "unknown profile 'h1000'"),
        (("--device", "tpu"), "kind is 'tpu'"),
        (("--trace", "/nowhere/at/all/trace.json"), "/nowhere/at/all"),
        (("--results-dir", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2_before_anything_runs(
    here, run, arguments: tuple[str, ...], words: str
) -> None:
    given = arguments if "--results-dir" in arguments else ("--results-dir", str(here.out), *arguments)
    code, _, err = run(*given)
    assert code == 2 and words in err and err.startswith("error: ") and err.count("\n") == 1
    assert not here.launchers and not here.out.exists()


@pytest.mark.parametrize(
    ("status", "words"), [("oom", "lower --micro-batch"), ("crashed", "planted"), ("hung", "planted")]
)
def test_a_worker_that_fails_is_one_line_and_nothing_is_kept(here, run, status: str, words: str) -> None:
    here.fault = lambda job: Outcome(status=status, reason="planted")
    code, _, err = run("--results-dir", str(here.out))
    assert code == 2 and status in err and words in err and err.count("\n") == 1
    assert not list(here.out.rglob("*.json")) and here.launchers[-1].closed


def test_ctrl_c_ends_the_workers_and_keeps_nothing(here, run) -> None:
    def press(job: dict) -> None:
        raise KeyboardInterrupt

    here.fault = press
    assert run("--results-dir", str(here.out))[0] == 130
    assert not list(here.out.rglob("*.json")) and here.launchers[-1].closed


def test_under_torchrun_it_is_refused(here, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    code, _, err = run()
    assert code == 2 and "without torchrun" in err


def test_importing_the_command_loads_no_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, stepladder.profile; sys.exit('torch' in sys.modules)"], check=True
    )
