"""What a worker does for `stepladder profile`: times a training step, then traces a few, in one process.

The profiler slows the host, so the step's time is that of the trial before it, measured as the ladder measures it.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from bench.ladder_jobs import load_batches, prepare
from bench.profile_trace import MARKS, STEP, read
from bench.trial import run_trial
from hardware import Device
from optim_ladder import TrainStep, build
from results.profiles import MODEL
from results.schema import to_dict


def profile(job: dict[str, Any], begun: float) -> dict[str, Any]:
    settings, device = prepare(job)
    with names_in_compiled_code(device), build(settings, device, seed=job["seed"]) as step:
        batches = cycle(load_batches(job, settings, step))
        trial = run_trial(job, begun, device, lambda: step(next(batches)))
        mark_phases(step)
        trace(lambda: step(next(batches)), device, job["num_steps"] + 1, Path(job["trace"]))
        config = step.model.config
    traced = read(json.loads(Path(job["trace"]).read_text()), num_steps=job["num_steps"], on_gpu=device.kind == "cuda")
    return {"trial": to_dict(trial), "model": {name: getattr(config, name) for name in MODEL}, **asdict(traced)}


def names_in_compiled_code(device: Device):
    """Lets the compiler's C++ kernels tell the profiler their names, as its Triton kernels always do."""
    if device.kind != "cpu":
        return nullcontext()
    import torch._inductor.config

    return torch._inductor.config.patch({"cpp.enable_kernel_profile": True})


def mark_phases(step: TrainStep) -> None:
    """Marks in the trace when the step is in which of its phases; what it does stays as it is."""

    def marked(method: Callable[..., Any], mark: str) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            with record_function(mark):
                return method(*arguments, **more)

        return run

    for mark, phase in MARKS.items():
        setattr(step, phase, marked(getattr(step, phase), mark))


def trace(work: Callable[[], object], device: Device, times: int, path: Path) -> None:
    """Runs some work a number of times under the profiler and writes the trace."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.kind == "cuda" else [])]
    device.synchronize()
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(times):
            with record_function(STEP):
                work()
        device.synchronize()
    profiler.export_chrome_trace(str(path))
