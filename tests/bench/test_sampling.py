"""The suite `sampling`: its plan, its session with workers that answer at once, its jobs with faults planted."""

import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import sampling_jobs
from bench.launch import ROOT, Launcher, Outcome
from bench.plan import Schedule
from bench.sampling import WINDOW, SamplingSession, make_plan
from hardware import detect
from model.cache import GrowingCache, StaticCache
from model.generate import choose
from optim_ladder import sampling
from optim_ladder.sampling import SamplingSettings, SamplingWorkload
from optim_ladder.sampling_rungs import bf16, kv_cache, static_cache
from results import store
from results.analysis import rows
from results.schema import Trial, from_dict
from tests.bench.fakes import FakeLauncher, Silent, tokens, trial
from tests.optim_ladder.devices import CPU, H100

WHERE = {"results_dir": Path("records"), "charts_dir": Path("charts")}
RIGHT = {
    "logits": 1e-6, "tokens": 0.0, "step_ms": [900.0, *[10.0] * 15], "work": {"tokens": 1.0, "bytes": 5e8},
    "peak_memory_bytes": 2**28,
}  # fmt: skip


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_is_gpt2_at_512_tokens_on_any_device() -> None:
    for device in (CPU, H100):
        plan = make_plan(device, **WHERE)
        assert (plan.suite, plan.workload, plan.custom) == ("sampling", SamplingWorkload(), False)
        assert list(plan.settings)[:3] == ["baseline", "baseline-again", "kv_cache"]
        assert list(plan.derivations) == ["cumulative", "batch"] and plan.vocab_size == 50257
    assert plan.schedule.num_trials == 6 and make_plan(CPU, **WHERE).schedule.num_trials == 4


def test_wishes_reach_the_plan() -> None:
    plan = make_plan(
        CPU, derivation="cumulative", rungs=["kv_cache", "bf16"], model="nano", seq_len=64, quick=True, **WHERE
    )
    assert list(plan.settings) == ["baseline", "baseline-again", "kv_cache", "kv_cache+bf16"]
    assert (plan.workload.model, plan.workload.context, plan.custom, plan.schedule.num_trials) == ("nano", 64, True, 1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"micro_batch": 4}, "--micro-batch is not for sampling"),
        ({"derivation": "scaling"}, "unknown derivation of sampling 'scaling'"),
        ({"rungs": ["flash"]}, "unknown rung 'flash'"),
        ({"rungs": [], "derivation": "cumulative"}, "nothing to measure beside the baseline"),
        ({"model": "char-bigram"}, "a table that remembers nothing"),
        (
            {"seq_len": WINDOW},
            f"--seq-len is {WINDOW}; sampling is measured with a context of more than {WINDOW} tokens",
        ),
    ],
)
def test_a_wrong_wish_is_one_clear_line(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make_plan(CPU, **wrong, **WHERE)


# -- the session -------------------------------------------------------------------------------------------------------


class Answers(FakeLauncher):
    """Answers checks too, and knows a setting's speed by its batch."""

    def _answer(self, name: str, job: dict) -> Outcome:
        if fault := self.faults(name, job):
            return fault
        if job["kind"] == "check":
            batch = float(job["settings"]["workload"]["batch"])
            return Outcome(status="ok", result=RIGHT | {"work": {"tokens": batch, "bytes": 4e8}})
        if job["kind"] == "trial":
            rungs, batch = tuple(job["settings"]["rungs"]), job["settings"]["workload"]["batch"]
            step_ms = self.step_ms.get(rungs, 800.0) * batch**0.5
            return Outcome(status="ok", result=trial(job, step_ms) | {"first_token_ms": [50.0, 52.0]})
        return super()._answer(name, job)


def session(tmp_path: Path, *, plan: dict | None = None, **launcher) -> SamplingSession:
    made = make_plan(
        CPU, **{"rungs": ["kv_cache", "bf16"], "schedule": Schedule(num_trials=3, num_blocks=4), **(plan or {})},
        results_dir=tmp_path / "records", charts_dir=tmp_path / "charts",
    )  # fmt: skip
    return SamplingSession(made, tokens(50257), Answers(tmp_path, **launcher), Silent())


def test_a_healthy_session_makes_a_complete_record(tmp_path: Path) -> None:
    s = session(tmp_path, step_ms={("kv_cache",): 40.0, ("kv_cache", "bf16"): 20.0})
    record = s.measure()
    assert (record.suite, record.status) == ("sampling", "complete") and record.num_parameters == 124_439_808 - 512 * 768  # 512 positions
    assert store.load(store.write(record, tmp_path / "records")) == record
    baseline, cached, small = rows(record)
    assert baseline.tokens_per_second.value == pytest.approx(1.25) and cached.over_baseline.ratio == pytest.approx(20.0)
    assert small.over_previous.ratio == pytest.approx(2.0) and small.first_token_ms.value == 51.0
    assert small.roofline_share == pytest.approx(4e8 / 40e9 / 0.02)  # bytes over the pretended 40 GB/s, over 20 ms
    assert cached.compile_ms == 890.0 and [c.what for c in cached.checks] == ["logits", "tokens"]
    four = rows(record, "batch")[1]
    assert (
        four.label == "4"
        and four.tokens_per_second.value == pytest.approx(4 / 0.04)
        and four.over_previous.ratio == pytest.approx(2.0)
    )


def test_text_is_real_and_the_same_for_every_setting_of_a_batch(tmp_path: Path) -> None:
    s = session(tmp_path)
    s.measure()
    texts = {job["settings"]["workload"]["batch"]: job["text"] for _, job, _ in s.launcher.jobs if "text" in job}
    assert {batch: np.load(path)["idx"].shape for batch, path in texts.items()} == {
        1: (1, 512),
        4: (4, 512),
        16: (16, 512),
    }
    stream = s.tokens.tokens.tolist()
    row = np.load(texts[4])["idx"][2].tolist()
    assert any(stream[i : i + 512] == row for i in range(len(stream) - 511))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"logits": 2e-4}, "logits differ from fp32 without a cache by 0.0002, above 0.0001"),
        ({"logits": 1e30}, "logits differ from fp32 without a cache by 1e+30"),
        ({"tokens": 0.1}, "tokens drawn otherwise: 0.1, above 0"),
    ],
)
def test_a_setting_that_is_wrong_is_called_so_and_left_out_of_what_stands_on_it(
    tmp_path: Path, found: dict, words: str
) -> None:
    def wrong(name: str, job: dict) -> Outcome | None:
        cached = job["kind"] == "check" and job["settings"]["rungs"] == ["kv_cache"]
        return Outcome(status="ok", result=RIGHT | found) if cached else None

    record = session(tmp_path, faults=wrong).measure()
    m = record.measurements
    assert (m["kv_cache"].status, m["bf16"].status) == ("wrong", "ok") and words in m["kv_cache"].reason
    assert [s.measurement for s in record.derivations["cumulative"]] == ["baseline", "kv_cache", "bf16"]


def test_a_rounded_setting_may_draw_other_tokens(tmp_path: Path) -> None:
    rounded = RIGHT | {"logits": 1e-2, "tokens": 0.3}
    record = session(
        tmp_path,
        faults=lambda name, job: (
            Outcome(status="ok", result=rounded) if "bf16" in name and job["kind"] == "check" else None
        ),
    ).measure()
    assert record.measurements["kv_cache+bf16"].status == "ok"
    assert record.measurements["kv_cache+bf16"].checks[1].bound == 1.0


def test_what_does_not_fit_is_out_of_memory(tmp_path: Path) -> None:
    def small(name: str, job: dict) -> Outcome | None:
        return (
            Outcome(status="oom", reason="x")
            if job["kind"] == "check" and job["settings"]["workload"]["batch"] == 16
            else None
        )

    m = session(tmp_path, faults=small).measure().measurements
    assert (m["kv_cache+bf16@16"].status, m["kv_cache+bf16@16"].reason) == ("oom", "check: x") and m[
        "kv_cache+bf16@4"
    ].status == "ok"


# -- the jobs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> dict:
    """A small model, real shapes: batch 2, 24 tokens of context, the last 8 of them written."""
    text = np.random.default_rng(0).integers(61, size=(2, 24))
    np.savez(tmp_path / "text.npz", idx=text)
    return {
        "suite": "sampling", "device": "cpu", "seed": 0, "text": str(tmp_path / "text.npz"), "window": 8, "turns": None,
        "trial": 0, "position": 0, "num_blocks": 2,
    }  # fmt: skip


def checked(job: dict, *rungs: str) -> dict:
    workload = SamplingWorkload(model="pico", vocab_size=61, batch=2, context=24)
    settings = SamplingSettings(workload=workload, rungs=rungs)
    return sampling_jobs.check(job | {"settings": settings.to_dict()}, time.perf_counter())


@pytest.mark.parametrize("rungs", [(), ("kv_cache",), ("static_cache",)])
def test_what_is_right_passes(job: dict, rungs: tuple) -> None:
    found = checked(job, *rungs)
    assert found["logits"] < 1e-5 and found["tokens"] == 0.0
    assert len(found["step_ms"]) == 8 and found["peak_memory_bytes"] > 0
    assert found["work"]["tokens"] == 2.0
    weights = (2 * 12 * 64 * 64 + 61 * 64) * 4
    kept = 2 * 2 * 24 * 64 * 2 * 4 if rungs else 0
    assert weights + kept < found["work"]["bytes"] < 1.05 * weights + kept + 20_000


class OneTooFar(StaticCache):
    def step(self, token, key, choice):
        self.read = min(self.read + 1, len(self.places) - 1)
        return super().step(token, key, choice)


class Forgetful(GrowingCache):
    """Forgets the first token it read."""

    def step(self, token, key, choice):
        self.kept = [
            (k.index_fill(2, torch.tensor([0]), 0), v.index_fill(2, torch.tensor([0]), 0)) for k, v in self.kept
        ]
        return super().step(token, key, choice)


class NoNumbers(GrowingCache):
    def step(self, token, key, choice):
        _, logits = super().step(token, key, choice)
        return choose(logits * math.nan, key, choice), logits * math.nan


class Mixed(GrowingCache):
    """Gives every sequence the next one's logits."""

    def step(self, token, key, choice):
        _, logits = super().step(token, key, choice)
        return choose(logits.roll(1, 0), key, choice), logits.roll(1, 0)


class OtherTokens(GrowingCache):
    """Right logits, and another token than they say."""

    def step(self, token, key, choice):
        drawn, logits = super().step(token, key, choice)
        return (drawn + 1) % 61, logits


@pytest.mark.parametrize("fault", [OneTooFar, Forgetful, NoNumbers, Mixed, OtherTokens])
def test_a_planted_fault_is_found(job: dict, monkeypatch: pytest.MonkeyPatch, fault: type) -> None:
    rung = static_cache.RUNG if issubclass(fault, StaticCache) else kv_cache.RUNG
    make = (lambda m, b, c: fault(m, b, c)) if issubclass(fault, StaticCache) else (lambda m, b, c: fault(m))
    planted = tuple(replace(r, reader=make) if r is rung else r for r in sampling.SAMPLING)
    monkeypatch.setattr(sampling, "SAMPLING", planted)
    found = checked(job, rung.name)
    assert found["logits"] > rung.error or found["tokens"] > 0.0
    assert (found["tokens"] > 0.5) == (fault in (OtherTokens, NoNumbers))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.h[0].attn.c_proj.weight.mul_(1.3),
        lambda m: m.wte.weight[:6].mul_(-1),
        lambda m: m.ln_f.weight[:4].zero_(),
    ],
    ids=["one matrix too large", "a tenth of the head flipped", "a few channels lost"],
)
def test_weights_that_are_off_are_more_than_rounding(job: dict, monkeypatch: pytest.MonkeyPatch, spoil) -> None:
    def convert(model):
        with torch.no_grad():
            spoil(model)
        return bf16.to_bf16(model)

    planted = tuple(replace(r, convert=convert) if r is bf16.RUNG else r for r in sampling.SAMPLING)
    assert checked(job, "bf16")["logits"] < bf16.RUNG.error
    monkeypatch.setattr(sampling, "SAMPLING", planted)
    assert checked(job, "bf16")["logits"] > bf16.RUNG.error


@pytest.mark.parametrize("rungs", [(), ("kv_cache",), ("static_cache",)])
def test_a_trial_writes_the_end_of_the_context_over_and_over(
    job: dict, monkeypatch: pytest.MonkeyPatch, rungs: tuple
) -> None:
    """No step reads more than the context holds nor less than the prompt, however many there are."""
    lengths = []
    honest = sampling_jobs.run_trial

    def watched(*arguments, **more):
        job, begun, device, step = arguments
        reader = next(cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "rewind"))

        def counted():
            step()
            lengths.append(reader.length)

        return honest(job, begun, device, counted, **more)

    monkeypatch.setattr(sampling_jobs, "run_trial", watched)
    settings = SamplingSettings(
        workload=SamplingWorkload(model="pico", vocab_size=61, batch=2, context=24), rungs=rungs
    )
    found = from_dict(Trial, sampling_jobs.trial(job | {"settings": settings.to_dict()}, time.perf_counter()), "trial")
    assert len(found.device_ms) == 2 and 1 <= len(found.first_token_ms) <= sampling_jobs.FIRST_TOKENS
    assert lengths[:9] == [17, 18, 19, 20, 21, 22, 23, 24, 17] and set(lengths) == set(range(17, 25))


def test_the_error_is_relative_and_blind_to_what_all_logits_share() -> None:
    reference = torch.tensor([[1.0, -1.0, 0.0], [30.0, 10.0, 20.0]])
    assert sampling_jobs.relative_error(reference + 5.0, reference) < 1e-6
    assert sampling_jobs.relative_error(reference * 1.01, reference) == pytest.approx(0.01, rel=1e-3)
    assert sampling_jobs.relative_error(reference * torch.tensor([[1.0], [1.1]]), reference) == pytest.approx(
        0.1, rel=1e-3
    )
    assert sampling_jobs.relative_error(reference * math.nan, reference) == 1e30


@pytest.mark.soak
def test_the_whole_suite_with_real_workers(tmp_path: Path) -> None:
    """Every rung that can run here, compiled ones too: all right, and a cache faster than none."""
    plan = make_plan(detect(), quick=True, model="nano", seq_len=128, results_dir=tmp_path, charts_dir=tmp_path)
    record = SamplingSession(plan, tokens(50257), Launcher(workdir=tmp_path, time_limit_s=600), Silent()).measure()
    assert {m.status for m in record.measurements.values()} == {"ok"}, {
        n: m.reason for n, m in record.measurements.items()
    }
    found = {row.label: row for row in rows(record)}
    assert found["kv_cache"].over_baseline.ratio > 1.5


@pytest.mark.soak
def test_as_a_user_runs_it(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--benchmark",
        "--suite",
        "sampling",
        "--quick",
        "--model",
        "pico",
        "--seq-len",
        "32",
    ]
    command += [
        "--rungs",
        "kv_cache,bf16",
        "--derive",
        "cumulative",
        f"--results-dir={tmp_path}",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    ((path, record),), problems = store.load_all(tmp_path / "records")
    assert not problems and record.suite == "sampling" and record.status == "complete" and record.custom
    assert list(record.measurements) == ["baseline", "baseline-again", "kv_cache", "kv_cache+bf16"]
    assert all(m.trials[0].first_token_ms and m.work["bytes"] > 0 for m in record.measurements.values())
    assert (tmp_path / "charts" / record.device["slug"] / "sampling.png").stat().st_size > 10_000
    for words in (
        "benchmark 'sampling': 4 tests",
        "test_setting[sampling:kv_cache]",
        "first token",
        "of the bound",
        path.name,
    ):
        assert words in run.stdout
