"""The suite `kernels` without a GPU: its plan, its cases in Triton's interpreter, its session with faults planted in
a case.
"""

import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

if find_spec("triton") is None:
    pytest.skip("kernels need triton", allow_module_level=True)
with pytest.MonkeyPatch.context() as patch:  # decided where a kernel's file is imported, see tests/kernels/conftest.py
    if not torch.cuda.is_available():
        patch.setenv("TRITON_INTERPRET", "1")
    from bench import kernel_cases

import kernels
from bench import kernels_jobs
from bench.kernel_case import BOTH, FORWARD, KERNEL, UPDATE, Case, Implementation, Size, Work
from bench.kernels import KernelSettings, KernelWorkload, make_plan, unavailable
from bench.kernels_session import KernelsSession
from bench.launch import ROOT, Launcher, Outcome
from bench.plan import Plan, Schedule
from bench.plugin import left_out, plans_from_options
from bench.roofline import roofline
from hardware import detect
from model import MODELS
from results import store
from results.kernels import problems
from tests.bench.fakes import Silent
from tests.bench.test_plugin import config
from tests.optim_ladder.devices import CPU, H100, T4, gpu

KIND = "cuda" if torch.cuda.is_available() else "cpu"
LAPTOP = gpu("NVIDIA GeForce RTX 3070 Laptop GPU", (8, 6), memory_gib=8)
WHERE = {"results_dir": Path("records"), "charts_dir": Path("charts")}
CASES = kernel_cases.CASES
SMALL = {
    "cross_entropy": {"N": 5, "V": 13, "P": 16},
    "linear_cross_entropy": {"N": 6, "C": 32, "V": 13, "P": 16},
    "layer_norm": {"N": 5, "C": 24},
    "bias_gelu": {"N": 4, "F": 32},
    "linear_gelu": {"N": 8, "C": 32},
    "flash_attention": {"B": 1, "T": 20, "H": 2, "D": 32},
    "adamw": {"L": 1, "C": 16, "V": 24, "T": 8},
}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if KIND == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        if reason := kernels.unavailable("cpu", None):
            pytest.skip(reason)


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_every_kernel_has_a_case_and_every_case_its_problems() -> None:
    plan = make_plan(H100, **WHERE)
    with_kernels = {p.stem for p in (ROOT / "kernels").glob("*.py") if "_kernel(" in p.read_text()}
    assert with_kernels | {"linear_cross_entropy"} == set(CASES) == set(plan.derivations)
    assert plan.suite == "kernels" and not plan.custom and plan.vocab_size is None and plan.climb is None
    for name, case in CASES.items():
        places = [p for p in plan.derivations[name] if p.settings]
        ways = {p.settings.implementation for p in places}
        assert {"written-out", "compiled", KERNEL} <= ways and len(ways) >= 4
        assert len(places) == len(ways) * len(case.sizes) * len(case.directions)
    ours = {name for name, s in plan.settings.items() if s.implementation == KERNEL}
    assert ours == set(plan.twins) | set(plan.twins.values()) and len(ours) == 2 * len(plan.twins)
    assert plan.schedule.num_blocks == 10 and plan.schedule.num_trials == 6
    assert all(name.isascii() and name.removesuffix("-again") == s.id for name, s in plan.settings.items())


def test_what_cannot_run_or_does_not_fit_is_left_out_with_its_reason() -> None:
    plan = make_plan(LAPTOP, rungs=["flash_attention", "cross_entropy"], **WHERE)
    skipped = {p.label: p.skipped for places in plan.derivations.values() for p in places if p.skipped}
    assert skipped["cross_entropy: gpt2 64 × 1024"] == "reads and writes 12.3 GiB; the device has 8.0"
    if KIND == "cpu":
        assert "cuDNN" in skipped["flash_attention: SDPA, cuDNN"]
    sizes = {s.workload.size for s in plan.settings.values() if s.workload.kernel == "cross_entropy"}
    assert sizes == {"gpt2 1 × 1024", "gpt2 8 × 1024", "stories 64 × 1024", "gpt2 8 × 1024, V=128256"}
    with pytest.raises(ValueError, match="nothing to measure: reads and writes"):
        make_plan(replace(LAPTOP, memory_bytes=2**20), rungs=["cross_entropy"], **WHERE)


def test_a_training_of_ones_own_gives_the_sizes() -> None:
    training = {"model": "gpt2-large", "micro_batch": 2, "seq_len": 512}
    plan = make_plan(H100, rungs=["layer_norm", "flash_attention"], **training, **WHERE)
    shapes = {s.workload.kernel: s.workload.shape for s in plan.settings.values()}
    assert shapes == {"layer_norm": {"N": 1024, "C": 1280}, "flash_attention": {"B": 2, "T": 512, "H": 20, "D": 64}}
    assert plan.custom and list(plan.rungs) == ["layer_norm", "flash_attention"]
    a30 = make_plan(H100, rungs=["layer_norm"], profile_name="a30", **WHERE)
    (size,) = {s.workload.size for s in a30.settings.values()}
    assert size == "gpt2 8 × 1024"
    assert make_plan(H100, quick=True, **WHERE).schedule == Schedule(num_trials=1, num_blocks=5)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"rungs": ["cross_entropi"]}, "unknown kernel 'cross_entropi': did you mean 'cross_entropy'"),
        ({"derivation": "single"}, "--derive single is about ladders, and kernels are none; leave it out"),
        ({"model": "char-bigram"}, "model is 'char-bigram', a table without any of these kernels"),
        ({"model": "gpt3"}, "unknown model 'gpt3'"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wish: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_plan(H100, **wish, **WHERE)


def test_the_least_there_is_to_do_is_what_the_training_step_counts() -> None:
    """The same model and tokens as in `bench.roofline`, which counts a whole step: all layers."""
    size, tokens, config = Size(micro_batch=64), 65536, MODELS["gpt2"]
    peaks = {"tflops": {"bf16": 1.0}, "bandwidth_gbps": 1.0}
    parts = roofline(config, num_parameters=1, tokens=tokens, seq_len=1024, peaks=peaks)["components_ms"]

    def work(name: str, direction: str = BOTH) -> Work:
        return CASES[name].work(CASES[name].shape(size), direction)

    assert work("linear_cross_entropy").flops / 1e9 == pytest.approx(parts["head GEMMs"])
    assert work("linear_gelu").flops * 12 / 1e9 == pytest.approx(parts["block GEMMs"] * 8 / 12)
    assert work("flash_attention").flops * 12 / 1e9 == pytest.approx(parts["attention"], rel=2e-3)  # the diagonal
    assert work("bias_gelu").bytes * 12 / 1e6 == pytest.approx(parts["GELU"])
    assert work("cross_entropy").bytes / 1e6 == pytest.approx(parts["cross-entropy"], rel=1e-3)  # padding
    parameters = 124_439_808
    assert work("adamw", UPDATE).bytes == 32 * parameters
    for name, case in CASES.items():  # a backward pass is never for nothing, and products grow by whole products
        if case.directions == (FORWARD, BOTH):
            assert work(name).bytes > work(name, FORWARD).bytes and work(name).flops in (0, *(
                n * work(name, FORWARD).flops for n in (3, 3.5)))  # fmt: skip


# -- on a machine without a GPU ----------------------------------------------------------------------------------------


def test_without_a_gpu_the_suite_says_so_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable(CPU) == "needs an NVIDIA GPU, and this is Test CPU"  # although TRITON_INTERPRET is set
    assert unavailable(T4) == "needs an NVIDIA GPU of compute capability 8.0 or newer"
    everything = config(suite="all")
    assert [plan.suite for plan in plans_from_options(everything)] == ["ladder", "sampling"]
    (line,) = left_out(everything)
    assert line.startswith("kernels: nothing to measure: needs an NVIDIA GPU, and this is ") and "\n" not in line
    assert left_out(config()) == [] and plans_from_options(config(suite="kernels")) == []


def test_without_a_gpu_the_command_ends_clean_and_leaves_nothing(tmp_path: Path) -> None:
    command = ["-m", "pytest", "--benchmark", "--suite", "kernels", "--device", "cpu", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, *command, f"--results-dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )  # fmt: skip
    lines = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
    assert run.returncode == 0 and len(lines) == 1, run.stdout + run.stderr
    assert "kernels: nothing to measure: needs an NVIDIA GPU" in lines[0]
    assert list(tmp_path.iterdir()) == []


# -- the cases ---------------------------------------------------------------------------------------------------------


def job(names: dict[str, KernelSettings], path: Path, **more: Any) -> dict[str, Any]:
    settings = [(name, s.to_dict()) for name, s in names.items()]
    common = {"device": KIND, "seed": 1, "time_limit_s": 600.0, "trial": 0, "num_blocks": 1}
    return {**common, "journal": str(path), "settings": settings, **more}


def setting(kernel: str, direction: str, way: str, shape: dict[str, int]) -> KernelSettings:
    workload = KernelWorkload(kernel=kernel, title=kernel, direction=direction, size="small", shape=shape)
    return KernelSettings(workload=workload, implementation=way)


@pytest.mark.parametrize("kernel", SMALL)
def test_every_way_to_compute_a_case_is_right(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.kernels_session import read_journal

    monkeypatch.setattr(kernels_jobs, "FIRST_CALLS", 1)
    case = CASES[kernel]
    settings = {
        f"{direction} {way.name}": setting(kernel, direction, way.name, SMALL[kernel])
        for direction in case.directions
        for way in case.implementations
        if not way.compiled and way.unavailable(detect(KIND)) is None  # the compiler takes too long for a test
    }
    kernels_jobs.check(job(settings, tmp_path / "journal"), time.perf_counter())
    answers, current = read_journal(tmp_path / "journal")
    assert current is None and list(answers) == list(settings)
    for name, outcome in answers.items():
        assert outcome.status == "ok", f"{name}: {outcome.reason}"
        checks = outcome.result["checks"]
        for c in checks:
            assert c["value"] <= c["bound"], f"{name}: {c}"
            assert c["bound"] > 0
        gradients = [c["what"] for c in checks if "gradient of" in c["what"]]
        assert bool(gradients) == (settings[name].workload.direction == BOTH)


# -- the session, with faults planted in a case ------------------------------------------------------------------------


class Died(BaseException):
    """A worker ended by a signal: no answer, whatever was written stays."""


class Hung(BaseException):
    """A worker that was ended for taking too long."""


class DoubleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return 4.0 * ctx.saved_tensors[0] * dy


def slowly(x: Tensor, seconds: float = 2e-3) -> Tensor:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return x.square()


def out_of_memory(x: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("planted: tried to allocate 1 TiB\nand more")


def dies(x: Tensor) -> Tensor:
    raise Died("the worker was ended by SIGSEGV")


def hangs(x: Tensor) -> Tensor:
    raise Hung("no result after 3 s")


def works_once(x: Tensor, left: list[int]) -> Tensor:
    """Through its check, and no further."""
    left[0] -= 1
    if left[0] < 0:
        raise RuntimeError("planted: not again")
    return x.square()


def planted(**ways: Any) -> Case:
    return Case(
        name="square",
        title="Squares",
        sizes=(Size(micro_batch=1), Size(micro_batch=2)),
        shape=lambda size: {"N": 8 * size.micro_batch},
        rows="N",
        inputs=lambda s, draw: {"x": draw(s["N"])},
        reference=torch.square,
        implementations=tuple(Implementation(name=n.replace("_", "-"), title=n, function=f) for n, f in ways.items()),
        work=lambda s, direction: Work(bytes=8 * s["N"]),
        largest=lambda s: s["N"],
    )


@dataclass
class InProcess:
    """Runs jobs right here; `Died` and `Hung` end one as a real worker would end."""

    workdir: Path
    jobs: list[dict] = field(default_factory=list)
    closed: bool = False

    def start(self, name: str, job: dict, **_: Any) -> SimpleNamespace:
        self.jobs.append(job)
        worker = SimpleNamespace(outcome=None, advance=lambda: None)
        if job["kind"] == "peaks":
            peaks = {"tflops": {"bf16": 1.0}, "bandwidth_gbps": 1.0, "method": "pretended"}
            worker.outcome = Outcome(status="ok", result=peaks)
            return worker
        try:
            getattr(kernels_jobs, job["kind"])(job, time.perf_counter())
            worker.outcome = Outcome(status="ok")
        except Died as error:
            worker.outcome = Outcome(status="crashed", reason=str(error))
        except Hung as error:
            worker.outcome = Outcome(status="hung", reason=str(error))
        return worker

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Measures a planted case on this machine's processor, in this process."""
    for name, value in {"BLOCK_MS": 0.5, "WARM_MS": 0.1, "WARM_UP_S": 0.05}.items():
        monkeypatch.setattr(kernels_jobs, name, value)

    def measure(
        trials: int = 2, reporter: Silent | None = None, time_limit_s: float = 600.0, **ways: Any
    ) -> tuple[KernelsSession, Any]:
        monkeypatch.setitem(kernel_cases.CASES, "square", planted(**ways))
        plan = make_plan(
            replace(CPU, memory_bytes=2**33), rungs=["square"],
            schedule=Schedule(num_trials=trials, num_blocks=3, time_limit_s=time_limit_s),
            results_dir=tmp_path, charts_dir=tmp_path,
        )  # fmt: skip
        session = KernelsSession(plan, None, InProcess(tmp_path), reporter or Silent())
        return session, session.measure()

    return measure


def id_of(way: str, direction: str = FORWARD, size: str = "gpt2 1x1024") -> str:
    return f"square: {direction}: {size}: {way}"


def test_a_healthy_session_makes_a_complete_record(run, tmp_path: Path) -> None:
    reporter = Silent()
    session, record = run(reporter=reporter, written_out=lambda x: x * x, compiled=torch.square, kernel=torch.square)
    assert (record.status, record.suite, record.workload) == ("complete", "kernels", {"caches": "cold"})
    assert len(record.measurements) == 2 * 2 * 4 and {m.status for m in record.measurements.values()} == {"ok"}
    assert {len(m.trials) for m in record.measurements.values()} == {2}
    assert {len(m.first_steps_ms) for n, m in record.measurements.items() if "again" not in n} == {3}
    assert len(reporter.lines) == reporter.steps == 1 + 1 * (1 + 2)
    assert reporter.lines[1] == "check of square: 12 of 12 right"
    assert "written_out" in reporter.lines[2] and "kernel" in reporter.lines[2] and session.launcher.closed
    assert store.load(store.write(record, tmp_path / "records")) == record
    found = problems(record, "square")
    assert [(p.direction, p.size) for p in found] == [
        (d, f"gpt2 {b} × 1024") for d in (FORWARD, BOTH) for b in (1, 2)
    ]
    assert all(p.floor is not None and p.least.by == "memory" for p in found)
    both = record.measurements[id_of("kernel", BOTH)]
    named = {c.what for c in both.checks}
    assert named == {"output 0", "mean of output 0", "gradient of x", "mean of gradient of x"}
    assert both.work == {"bytes": 64.0}


def test_trials_of_a_pair_run_in_opposite_order(run) -> None:
    session, _ = run(library=torch.square, kernel=torch.square)
    first, second = ([name for name, _ in job["settings"]] for job in session.launcher.jobs if job["kind"] == "trial")
    assert second == first[::-1] and set(first) == set(session.progress)
    assert sum(name.endswith("-again") for name in first) == 4


def test_a_planted_slowdown_is_found(run) -> None:
    _, record = run(trials=3, library=slowly, kernel=torch.square)
    slow = problems(record, "square")[0].entry("library")
    assert slow.row.step_ms.value >= 2.0 and slow.ours_over.ratio > 10 and slow.verdict == "faster"


@pytest.mark.parametrize(
    ("way", "directions", "words"),
    [
        (lambda x: x.square() + 1e-3, (FORWARD, BOTH), "against float64, output 0 is off by 0.001, above "),
        (DoubleGradient.apply, (BOTH,), "gradient of x is off by "),
        (lambda x: x.square() * float("nan"), (FORWARD, BOTH), "output 0 is off by 1e+30"),
        (lambda x: x.square()[:-1], (FORWARD,), "output 0 is off by 1e+30"),
    ],
    ids=["an offset", "a gradient", "no number", "a shape"],
)
def test_what_computes_something_else_is_wrong(run, way, directions: tuple[str, ...], words: str) -> None:
    _, record = run(trials=1, library=way, kernel=torch.square)
    for direction in (FORWARD, BOTH):
        m = record.measurements[id_of("library", direction)]
        if direction in directions:
            assert m.status == "wrong" and words in m.reason, (m.status, m.reason)
        elif words.startswith("gradient"):
            assert m.status == "ok"
    (problem, *_) = problems(record, "square")
    if FORWARD in directions:
        assert problem.entry("library").ours_over is None and problem.entry("library").row.step_ms is None
    assert problem.ours.row.step_ms is not None


def test_small_numbers_beside_large_ones_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a loss is -1 at the target and next to nothing elsewhere; some of that is missing here."""
    from bench.kernels_session import read_journal

    right = CASES["cross_entropy"].implementation(KERNEL)

    def incomplete(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        losses, gradients = right.gradients(logits, targets, vocab_size)
        odd = torch.arange(vocab_size, device=logits.device) % 2 == 1
        return losses, {"logits": gradients["logits"] * ((gradients["logits"] < 0) | odd)}

    ways = (replace(right, gradients=incomplete),)
    monkeypatch.setitem(kernel_cases.CASES, "cross_entropy", replace(CASES["cross_entropy"], implementations=ways))
    here = {"x": setting("cross_entropy", BOTH, KERNEL, {"N": 2, "V": 4000, "P": 4000})}
    kernels_jobs.check(job(here, tmp_path / "journal"), time.perf_counter())
    checks = read_journal(tmp_path / "journal")[0]["x"].result["checks"]
    assert [c["what"] for c in checks if c["value"] > c["bound"]][-1:] == ["mean of gradient of logits"]


def test_a_failure_is_that_implementations_alone(run) -> None:
    _, record = run(trials=1, library=out_of_memory, compiled=lambda x: x.missing, kernel=torch.square)
    m = record.measurements
    assert (m[id_of("library")].status, m[id_of("library")].reason) == (
        "oom", "check: OutOfMemoryError: planted: tried to allocate 1 TiB")  # fmt: skip
    assert m[id_of("compiled")].status == "crashed" and "AttributeError" in m[id_of("compiled")].reason
    assert m[id_of("kernel")].status == m[id_of("kernel") + "-again"].status == "ok" and record.status == "complete"


@pytest.mark.parametrize(
    ("way", "status", "reason"), [(dies, "crashed", "ended by SIGSEGV"), (hangs, "hung", "no result after 3 s")]
)
def test_a_process_that_dies_takes_one_setting_with_it(run, way, status: str, reason: str) -> None:
    session, record = run(trials=1, written_out=torch.square, library=way, kernel=torch.square)
    of = {name: m.status for name, m in record.measurements.items()}
    assert {of[n] for n in of if n.endswith("library")} == {status}
    assert {of[n] for n in of if not n.endswith("library")} == {"ok"}
    assert reason in record.measurements[id_of("library")].reason
    checks = [[name for name, _ in job["settings"]] for job in session.launcher.jobs if job["kind"] == "check"]
    assert len(checks) == 4 + 1  # one more than there are settings that kill it
    trials = [name for job in session.launcher.jobs if job["kind"] == "trial" for name, _ in job["settings"]]
    assert trials and not any(name.endswith("library") for name in trials)


def test_settings_that_take_long_together_do_not_count_as_one_that_hangs(run) -> None:
    """The time limit is a process's. Where it is spent, another process goes on; each does one setting at least."""
    session, record = run(trials=1, time_limit_s=1e-6, kernel=torch.square)
    assert {m.status for m in record.measurements.values()} == {"ok"}
    jobs = [[name for name, _ in job["settings"]] for job in session.launcher.jobs if job["kind"] == "trial"]
    assert [len(names) for names in jobs] == list(range(len(record.measurements), 0, -1))
    assert all(after == before[1:] for before, after in zip(jobs, jobs[1:]))


def test_a_worker_that_never_comes_to_a_setting_fails_them_all(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: dict, begun: float) -> dict:
        raise Died("no such library")

    monkeypatch.setattr(kernels_jobs, "check", broken)
    session, record = run(trials=1, kernel=torch.square)
    assert {m.status for m in record.measurements.values()} == {"crashed"}
    assert len([job for job in session.launcher.jobs if job["kind"] == "check"]) == 1


def test_a_failure_in_a_trial_keeps_what_was_measured(run) -> None:
    left = [10**9]
    reporter = Silent()
    reporter.working = lambda what: left.__setitem__(0, 0) if what.startswith("trial 2/2") else None
    _, record = run(reporter=reporter, library=lambda x: works_once(x, left), kernel=torch.square)
    m = record.measurements[id_of("library")]
    assert (m.status, m.reason, len(m.trials)) == ("crashed", "trial 2: RuntimeError: planted: not again", 1)


def test_ctrl_c_keeps_what_was_measured(run) -> None:
    _, record = run(reporter=Silent(interrupt_at="trial 2/2 of square"), kernel=torch.square)
    assert record.status == "partial" and {len(m.trials) for m in record.measurements.values()} == {1}


def test_what_is_too_large_to_check_is_checked_on_fewer_rows() -> None:
    case = CASES["cross_entropy"]
    cut = case.cut(case.shape(Size(micro_batch=64)), kernels_jobs.MOST_NUMBERS)
    assert cut == {"N": 2048, "V": 50257, "P": 50304} and case.largest(cut) <= kernels_jobs.MOST_NUMBERS
    assert CASES["adamw"].cut(CASES["adamw"].shape(Size(model="gpt2-large")), 2**27)["L"] == 2
    assert case.cut({"N": 3, "V": 9, "P": 9}, 1)["N"] == 1


# -- a real worker -----------------------------------------------------------------------------------------------------


def test_real_workers_in_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.session.PEAKS_BUDGET_S", 0.05)
    ways = tuple(w for w in CASES["bias_gelu"].implementations if w.name in ("library", KERNEL))
    case = replace(CASES["bias_gelu"], implementations=ways, sizes=(Size(model="pico", micro_batch=1, seq_len=4),))
    monkeypatch.setitem(kernel_cases.CASES, "bias_gelu", case)
    plan: Plan = make_plan(
        detect(KIND), rungs=["bias_gelu"], schedule=Schedule(num_trials=1, num_blocks=2, time_limit_s=120), seed=3,
        results_dir=tmp_path, charts_dir=tmp_path,
    )  # fmt: skip
    record = KernelsSession(plan, None, Launcher(workdir=tmp_path, time_limit_s=120), Silent()).measure()
    reasons = {name: m.reason for name, m in record.measurements.items()}
    assert {m.status for m in record.measurements.values()} == {"ok"}, reasons
    assert len(record.measurements) == 2 * 3 and record.seed == 3
    (forward, both) = problems(record, "bias_gelu")
    assert forward.shape == {"N": 4, "F": 256} and math.isfinite(both.ours.row.step_ms.value)
    assert record.peaks["measured"]["bandwidth_gbps"] > 0
