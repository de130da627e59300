"""One profile: the device's peaks in one worker, the step in another, and what both found as a `Profile`."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.ladder import NUM_BATCHES
from bench.launch import ROOT, Launcher
from bench.roofline import roofline
from bench.session import PEAKS_BUDGET_S, Reporter, describe_peaks
from data.tokens import TokenSource, batches
from hardware import Device, capture, datasheet_peaks
from model.flops import num_parameters
from optim_ladder import Settings
from plots.text import milliseconds
from results import SCHEMA_VERSION, Trial
from results.profiles import Kernel, Profile
from results.schema import from_dict

NUM_BLOCKS = 10
MOST_STEPS = 200  # an eager step leaves ten thousand events, which are held in memory


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be profiled.

    Args:
        device: where.
        settings: rungs and workload, of one process.
        profile: name of the workload's profile.
        custom: rungs or workload are not the profile's own.
        num_steps: to trace.
        seed: of weights and batches.
    """

    device: Device
    settings: Settings
    profile: str
    custom: bool
    num_steps: int = 8
    seed: int = 1337

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MOST_STEPS:
            raise ValueError(f"--steps is {self.num_steps}; trace at least 1 and at most {MOST_STEPS}")
        if self.device.kind not in ("cuda", "cpu"):
            raise ValueError(
                f"PyTorch's profiler sees no kernels on {self.device.kind}; profile with --device cpu or cuda"
            )
        w = self.settings.workload
        if w.world_size > 1:
            raise ValueError(f"world_size is {w.world_size}; a profile is of one process")
        if not w.is_transformer:
            raise ValueError(f"model is {w.model!r}, a table without parts to compare; choose a transformer")


def measure(wish: Wish, tokens: TokenSource, launcher: Launcher, reporter: Reporter) -> Profile:
    """Runs both workers.

    Args:
        wish: what to profile.
        tokens: real text.
        launcher: starts the workers; whoever made it closes it.
        reporter: is told how it goes.

    Raises:
        ValueError: the step could not be run or traced; says why.
    """
    created, environment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), capture(wish.device, ROOT)
    reporter.begin(2)
    peaks = measured_peaks(wish, launcher, reporter)
    found = traced_step(wish, tokens, launcher, reporter)
    return Profile(
        schema_version=SCHEMA_VERSION,
        created_utc=created,
        profile=wish.profile,
        custom=wish.custom,
        device=asdict(wish.device) | {"capability": list(wish.device.capability or ()) or None},
        environment=environment,
        workload=wish.settings.workload.to_dict(),
        rungs=list(wish.settings.rungs),
        precision=wish.settings.precision,
        seed=wish.seed,
        token_source=tokens.info,
        peaks=peaks,
        roofline=bounds(wish, peaks),
        model=found["model"],
        trial=from_dict(Trial, found["trial"], "trial"),
        num_steps=wish.num_steps,
        num_counted=found["num_counted"],
        traced_step_ms=found["step_ms"],
        busy_ms=found["busy_ms"],
        kernels=[from_dict(Kernel, kernel, "kernel") for kernel in found["kernels"]],
        flags=found["flags"],
    )


def measured_peaks(wish: Wish, launcher: Launcher, reporter: Reporter) -> dict[str, Any]:
    """The data sheet's and the measured ones, as in a record."""
    reporter.working("what this device reaches on a matrix product and a copy")
    worker = launcher.start("peaks", _job(wish, "peaks", budget_s=PEAKS_BUDGET_S))
    worker.advance()
    outcome = worker.outcome
    reporter.done("peaks", outcome.reason or describe_peaks(outcome.result))
    return {"datasheet": datasheet_peaks(wish.device), "measured": outcome.result or None}


def traced_step(wish: Wish, tokens: TokenSource, launcher: Launcher, reporter: Reporter) -> dict[str, Any]:
    """What the worker found; see `bench.profile_jobs`.

    Raises:
        ValueError: it failed; says how.
    """
    w = wish.settings.workload
    path = launcher.workdir / "batches.npz"
    idx, targets = batches(
        tokens.tokens, micro_batch=w.sequences_per_step, seq_len=w.seq_len, count=NUM_BATCHES, seed=wish.seed
    )
    np.savez(path, idx=idx, targets=targets)
    reporter.working(f"a step of {wish.settings.id}, timed, then traced")
    job = _job(
        wish, "profile", settings=wish.settings.to_dict(), batches=str(path), trial=0, position=0,
        num_blocks=NUM_BLOCKS, num_steps=wish.num_steps, trace=str(trace_path(launcher)),
    )  # fmt: skip
    worker = launcher.start("profile", job)
    worker.advance()
    outcome = worker.outcome
    if outcome.status != "ok":
        remedy = "; lower --micro-batch" if outcome.status == "oom" else ""
        raise ValueError(
            f"the step of {wish.settings.id} could not be profiled: {outcome.status}: {outcome.reason}{remedy}"
        )
    found = outcome.result
    step, traced = float(np.median(found["trial"]["device_ms"])), found["step_ms"]
    reporter.done("profile", f"{milliseconds(step)} per step, {milliseconds(traced)} traced")
    return found


def trace_path(launcher: Launcher) -> Path:
    """Where the worker leaves the trace itself."""
    return launcher.workdir / "trace.json"


def bounds(wish: Wish, peaks: dict[str, Any]) -> dict[str, Any] | None:
    """The roofline at the measured peaks, else at the data sheet's; None where neither is known."""
    w = wish.settings.workload
    config = w.model_config()
    for whose in ("measured", "datasheet"):
        found = roofline(
            config,
            num_parameters=num_parameters(config),
            tokens=w.tokens_per_step,
            seq_len=w.seq_len,
            peaks=peaks[whose] or {},
        )
        if found:
            return found | {"peaks": whose}
    return None


def _job(wish: Wish, kind: str, **more: Any) -> dict[str, Any]:
    return {"suite": "ladder", "kind": kind, "device": wish.device.kind, "seed": wish.seed, **more}
