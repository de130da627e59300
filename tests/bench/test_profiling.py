"""One profile from both workers, and the worker's job for real on this machine."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.ladder import NUM_BATCHES
from bench.launch import Outcome
from bench.profile_sums import Traced
from bench.profiling import Wish, measure, trace_path
from bench.suites import SUITES
from hardware import detect
from optim_ladder import LADDER, Settings, Workload
from results import parts, profiles
from results.gaps import breakdown
from results.parts import Sizes, parts_of
from results.profiles import Profile
from tests.bench.fakes import FakeLauncher, Silent, tokens, trial
from tests.made_profiles import MODEL, make_kernel
from tests.optim_ladder.devices import CPU, H100

TINY = Workload(model="nano", vocab_size=320, micro_batch=2, seq_len=32)


def wish(**changes: Any) -> Wish:
    values = {
        "device": CPU,
        "settings": Settings(workload=TINY, rungs=("fused_adamw",)),
        "profile": "cpu",
        "custom": False,
    }
    return Wish(**(values | changes))


def answer(name: str, job: dict) -> Outcome | None:
    """A worker that has traced one kernel of 60 ms in a step of 100."""
    if job["kind"] != "profile":
        return None
    found = Traced(
        num_counted=2,
        step_ms=101.0,
        busy_ms=60.0,
        kernels=[make_kernel("aten::mul", 60.0, kind="operator")],
        flags=["noted"],
    )
    return Outcome(status="ok", result={"trial": trial(job, 100.0), "model": MODEL, **asdict(found)})


def test_both_workers_answers_become_a_profile_that_can_be_kept(tmp_path: Path) -> None:
    launcher, reporter = FakeLauncher(tmp_path, faults=answer), Silent()
    found = measure(wish(num_steps=3, custom=True), tokens(320), launcher, reporter)
    assert [(name, job["kind"], job["suite"]) for name, job, _ in launcher.jobs] == [
        ("peaks", "peaks", "ladder"), ("profile", "profile", "ladder"),
    ]  # fmt: skip
    job = launcher.jobs[1][1]
    assert (
        job["num_steps"] == 3
        and job["trace"] == str(trace_path(launcher))
        and job["settings"]["rungs"] == ["fused_adamw"]
    )
    with np.load(job["batches"]) as batches:
        assert batches["idx"].shape == batches["targets"].shape == (NUM_BATCHES, 2, 32)
    assert found.trial.device_ms == [100.0] * job["num_blocks"] and found.busy_ms == 60.0 and found.flags == ["noted"]
    assert found.roofline["peaks"] == "measured" and found.roofline["dtype"] == "fp32" and found.custom
    assert found.workload == TINY.to_dict() and found.environment["harness_sha256"] and found.token_source["corpus"]
    assert reporter.steps == len(reporter.lines) == 2 and "100 ms per step" in reporter.lines[1]
    assert profiles.load(profiles.write(found, tmp_path / "profiles")) == found
    told = {part.name: part.ms for part in breakdown(found).parts}
    assert told[parts.IDLE] == pytest.approx(40.0)


def test_without_measured_peaks_the_data_sheet_serves_and_without_both_nothing(tmp_path: Path) -> None:
    def no_peaks(name: str, job: dict) -> Outcome | None:
        return Outcome(status="crashed", reason="planted") if job["kind"] == "peaks" else answer(name, job)

    on_gpu = measure(wish(device=H100), tokens(320), FakeLauncher(tmp_path, faults=no_peaks), Silent())
    assert on_gpu.roofline["peaks"] == "datasheet" and on_gpu.peaks["measured"] is None
    profiles.check(on_gpu)
    neither = measure(wish(), tokens(320), FakeLauncher(tmp_path, faults=no_peaks), Silent())
    assert neither.roofline is None
    profiles.check(neither)


@pytest.mark.parametrize("status", ["oom", "crashed", "hung"])
def test_a_step_that_fails_is_one_line_with_its_reason(tmp_path: Path, status: str) -> None:
    def failing(name: str, job: dict) -> Outcome | None:
        return Outcome(status=status, reason="planted") if job["kind"] == "profile" else None

    with pytest.raises(ValueError, match=f"fused_adamw could not be profiled: {status}: planted") as error:
        measure(wish(), tokens(320), FakeLauncher(tmp_path, faults=failing), Silent())
    assert "\n" not in str(error.value) and ("--micro-batch" in str(error.value)) == (status == "oom")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_steps": 0}, "--steps is 0"),
        ({"num_steps": 10**20}, "--steps is 100000000000000000000; trace at least 1 and at most 200"),
        ({"device": replace(CPU, kind="mps")}, "sees no kernels on mps"),
        ({"settings": Settings(workload=replace(TINY, world_size=2))}, "world_size is 2"),
        ({"settings": Settings(workload=Workload(model="char-bigram"))}, "'char-bigram'"),
    ],
)
def test_what_cannot_be_profiled_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        wish(**changes)
    assert "\n" not in str(error.value)


def run_job(folder: Path, settings: Settings, num_steps: int = 2) -> dict[str, Any]:
    """The worker's job in this process."""
    device, w = detect(), settings.workload
    stream = np.random.default_rng(0).integers(w.vocab_size, size=(2, NUM_BATCHES, w.sequences_per_step, w.seq_len))
    np.savez(folder / "batches.npz", idx=stream[0], targets=stream[1])
    job = {
        "suite": "ladder", "kind": "profile", "device": device.kind, "seed": 1, "trial": 0, "position": 0, "turns": None,
        "settings": settings.to_dict(), "batches": str(folder / "batches.npz"), "num_blocks": 2, "num_steps": num_steps,
        "trace": str(folder / "trace.json"),
    }  # fmt: skip
    return SUITES["ladder"].jobs["profile"](job, time.perf_counter())


def profile_of(found: dict[str, Any], settings: Settings, folder: Path) -> Profile:
    launcher = FakeLauncher(
        folder, faults=lambda name, job: Outcome(status="ok", result=found) if job["kind"] == "profile" else None
    )
    return measure(wish(device=detect(), settings=settings), tokens(settings.workload.vocab_size), launcher, Silent())


def test_a_real_step_is_traced_whole(tmp_path: Path) -> None:
    settings = Settings(workload=replace(TINY, grad_accumulation=2), rungs=("fused_adamw",))
    found = profile_of(run_job(tmp_path, settings), settings, tmp_path)
    profiles.check(found)
    assert (
        sum(k.share_ms for k in found.kernels) == pytest.approx(found.busy_ms)
        and 0 < found.busy_ms <= found.traced_step_ms
    )
    assert found.model["n_layer"] == 4 and found.model["rows"] == 320
    sizes, names = Sizes.of(found), {part.name for part in breakdown(found).parts if part.ms}
    assert {
        parts.BLOCK,
        parts.HEAD,
        parts.ATTENTION,
        parts.NORM,
        parts.GELU,
        parts.BIAS,
        parts.LOSS,
        parts.OPTIMIZER,
        parts.EMBEDDING,
    } <= names
    calls = dict.fromkeys((parts.BLOCK, parts.HEAD), 0.0)
    for kernel in found.kernels:
        if kernel.launched_by[-1:] in (["aten::mm"], ["aten::addmm"]):
            calls[parts_of(kernel, sizes)[0]] += kernel.calls
    # Two micro-batches, each with 4 layers of 4 products and two gradients of each, and the head's three.
    wanted = {parts.BLOCK: 2 * 4 * 4 * 3, parts.HEAD: 2 * 3}
    assert calls == wanted if found.device["kind"] == "cpu" else all(calls[name] >= wanted[name] for name in wanted)
    adamw = [kernel for kernel in found.kernels if "aten::_fused_adamw_" in kernel.launched_by]
    assert adamw and {kernel.phase for kernel in adamw} == {"update"}
    other = next((part.ms for part in breakdown(found).parts if part.name == parts.OTHER), 0.0)
    assert other < 0.05 * found.busy_ms


@pytest.mark.soak  # compiles
@pytest.mark.skipif(
    next(r for r in LADDER if r.name == "compile").unavailable(detect(), TINY) is not None,
    reason="nothing can be compiled here",
)
def test_compiled_kernels_tell_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    settings = Settings(workload=TINY, rungs=("compile", "fused_adamw"))
    found = profile_of(run_job(tmp_path, settings), settings, tmp_path)
    fused = {
        part
        for k in found.kernels
        if "_fused_" in k.name and k.phase != "update"
        for part in parts_of(k, Sizes.of(found))
    }
    assert {parts.NORM, parts.GELU, parts.LOSS} <= fused
    other = next((part.ms for part in breakdown(found).parts if part.name == parts.OTHER), 0.0)
    assert other < 0.1 * found.busy_ms
