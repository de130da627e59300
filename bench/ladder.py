"""The suite `ladder`: optimizer steps of a training run, one optimization after the other switched on."""

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from bench import parity
from bench.launch import Outcome
from bench.plan import Plan, Schedule, distinct
from bench.roofline import roofline
from bench.session import Progress, Session
from data.tokens import batches
from hardware import Device
from model.flops import flops_per_token, num_parameters
from optim_ladder import DEFAULT, DERIVATIONS, Settings, Workload, derive, in_order, profile, unknown
from optim_ladder.derive import take_over

NUM_BATCHES = max(parity.NUM_STEPS, 8)  # per step, resident on the device; trials cycle through them


def make_plan(
    device: Device,
    *,
    derivation: str | None = None,
    rungs: Iterable[str] | None = None,
    profile_name: str | None = None,
    model: str | None = None,
    micro_batch: int | None = None,
    seq_len: int | None = None,
    schedule: Schedule | None = None,
    quick: bool = False,
    seed: int = 1337,
    results_dir: Path,
    charts_dir: Path,
) -> Plan:
    """Derives a session from what a user asked for.

    Args:
        device: where to measure.
        derivation: one of `DERIVATIONS`, "all", or None for the cumulative one.
        rungs: names to keep to; None takes the whole ladder but those that stand aside.
        profile_name: instead of the one found by the device's name.
        model, micro_batch, seq_len: instead of the profile's.
        schedule: how much to measure.
        quick: one trial of few blocks.
        seed, results_dir, charts_dir: see `Plan`.

    Raises:
        ValueError: an unknown name, a size that is not positive, rungs that exclude each other or lack what they need.
    """
    derivation = derivation or "cumulative"
    if derivation != "all" and derivation not in DERIVATIONS:
        raise unknown("derivation", derivation, [*DERIVATIONS, "all"])
    name, workload = profile(device, profile_name)
    changes = {"model": model, "micro_batch": micro_batch, "seq_len": seq_len}
    workload = replace(workload, **{key: value for key, value in changes.items() if value is not None})
    if not workload.is_transformer:
        raise ValueError(
            f"model is {workload.model!r}, a table without a matrix product to measure; choose a transformer"
        )
    chosen = DEFAULT if rungs is None else in_order(rungs)
    if rungs is not None:
        # Checked as if all were on at once, so that a missing need or two rungs of one slot are an error, not a skip.
        # Only to choose between them, rungs of one slot are named together.
        together = reduce(take_over, chosen, ()) if derivation == "choices" else chosen
        Settings(workload=workload, rungs=tuple(r.name for r in together))
    names = DERIVATIONS if derivation == "all" else (derivation,)
    if "scaling" in names and not any(r.scaling for r in chosen):
        if derivation == "scaling":
            raise ValueError("derivation 'scaling' needs rung 'ddp'; add it to --rungs")
        names = tuple(n for n in names if n != "scaling")
    derivations = {n: derive(n, chosen, device, workload) for n in names}
    if len(derivations.get("choices", ())) == 1:  # everything, and nothing to choose
        if derivation == "choices":
            raise ValueError("derivation 'choices' needs two rungs of one slot that can run here; name more in --rungs")
        del derivations["choices"]
    schedule = schedule or Schedule.default(device)
    w = workload
    return Plan(
        suite="ladder",
        device=device,
        profile=name,
        custom=rungs is not None or profile_name is not None or any(v is not None for v in changes.values()),
        workload=workload,
        title=f"{w.model}, B={w.micro_batch}, T={w.seq_len}, V={w.vocab_size}",
        rungs=tuple(chosen),
        derivations=derivations,
        settings=distinct(Settings(workload=workload), derivations),
        schedule=schedule.quick() if quick else schedule,
        quick=quick,
        seed=seed,
        results_dir=results_dir,
        charts_dir=charts_dir,
        vocab_size=workload.vocab_size,
        climb=lambda rest: derive("cumulative", rest, device, workload),
    )


class LadderSession(Session):
    """Measures training steps; each setting's first ones are held against true fp32."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.references: dict[int, Outcome] = {}  # by sequences per step

    def check(self, name: str, p: Progress) -> str:
        reference = self._reference(p.settings.workload)
        if reference.status != "ok":
            p.fail(reference, "no fp32 reference to compare with")
            return f"{p.status}: {p.reason}"
        outcome = self.fitting(name, p, "parity").outcome
        if outcome.status != "ok":
            p.fail(outcome, "parity run")
            return f"{p.status}: {p.reason}"
        measured = parity.Trajectory(**outcome.result["trajectory"])
        p.peak_memory_bytes = outcome.result["peak_memory_bytes"]
        p.parity = parity.compare(measured, parity.Trajectory(**reference.result["trajectory"]), p.settings.drift)
        p.first_steps_ms = measured.step_ms
        if not p.parity.passed:
            p.status, p.reason = "wrong", p.parity.reason
            return f"{p.status}: {p.reason}"
        return f"loss within {p.parity.loss_drift:.1e} of fp32, gradients within {p.parity.gradient_drift:.1e}"

    def _reference(self, workload: Workload) -> Outcome:
        """The true fp32 trajectory for steps of this many sequences, run once per session in one process."""
        size = workload.sequences_per_step
        if size not in self.references:
            alone = replace(self.plan.workload, grad_accumulation=size // self.plan.workload.micro_batch, world_size=1)
            p = Progress(Settings(workload=alone))
            self.references[size] = self.fitting(f"reference-{size}", p, "parity").outcome
        return self.references[size]

    def inputs(self, settings: Settings) -> dict[str, Any]:
        """The session's batches for steps of this many sequences; the same text whatever the setting."""
        size, seq_len = settings.workload.sequences_per_step, settings.workload.seq_len
        path = self.launcher.workdir / f"batches-{size}.npz"
        if not path.exists():
            idx, targets = batches(
                self.tokens.tokens, micro_batch=size, seq_len=seq_len, count=NUM_BATCHES, seed=self.plan.seed
            )
            np.savez(path, idx=idx, targets=targets)
        return {"batches": str(path)}

    def smaller(self, settings: Settings) -> Settings | None:
        """The same step in micro-batches half as large; trials of two workloads are not one sample."""
        workload = settings.workload.halved()
        return workload and replace(settings, workload=workload)

    def rate(self, p: Progress, step_ms: float) -> str:
        w = p.settings.workload
        return f"{step_ms:.1f} ms/step, {w.tokens_per_step / w.world_size / step_ms * 1e3:,.0f} tok/s"

    def about(self, datasheet: dict[str, Any] | None) -> dict[str, Any]:
        plan, workload = self.plan, self.plan.workload
        config = workload.model_config()
        parameters = num_parameters(config)
        return {
            "num_parameters": parameters,
            "flops_per_token": flops_per_token(config, workload.seq_len),
            "mfu_peak": mfu_peak(datasheet, self.measured_peaks if plan.device.kind == "cpu" else None),
            "roofline": roofline(
                config,
                num_parameters=parameters,
                tokens=workload.tokens_per_step,
                seq_len=workload.seq_len,
                peaks=self.measured_peaks,
            ),
        }


def mfu_peak(datasheet: dict[str, Any] | None, measured: dict[str, Any] | None) -> dict[str, Any] | None:
    """What MFU is divided by: the data sheet's dense 16-bit rate; on a CPU, which has none, the fastest measured."""
    for dtype in ("bf16", "fp16"):
        if datasheet and dtype in datasheet["tflops"]:
            return {"dtype": dtype, "tflops": datasheet["tflops"][dtype], "source": datasheet["source"]}
    if measured and measured.get("tflops"):
        dtype = max(measured["tflops"], key=measured["tflops"].get)
        return {"dtype": dtype, "tflops": measured["tflops"][dtype], "source": "measured: " + measured["method"]}
    return None
