"""What a worker does for the suite `kernels`: many settings of one kernel, one after another, in one process.

    check  is what each implementation computes right? then its first calls, which compile and tune
    trial  each implementation's time, call by call from cold caches

A process that dies takes one setting with it: every answer is written to the job's journal as soon as there is one,
and before that, whose turn it is. `bench.kernels_session` reads it, and another process does the rest. So it does where
many settings take long: a process's time limit is there to find one that hangs.
"""

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cold import ColdStopwatch
from bench.failure import failure
from bench.kernel_case import Draw, Implementation, Inputs, Results, widened
from bench.kernels import KernelSettings
from bench.timing import garbage_frozen, steady_state, warm_up
from hardware import Device, Monitor, detect, peak_memory
from results.schema import Check, Trial, to_dict

BLOCK_MS = 10.0  # of a timed block, sweeps included; short, for there are many settings
WARM_MS, WARM_UP_S = 2.0, 2.0  # of one step of the warm-up; of all of it, at most
FIRST_CALLS = 3
# How far from float64 an implementation may be, over the specification in the types that are measured. A kernel's own
# tests allow half of it; others add in other orders, and luck must not call them wrong.
FACTOR = 4.0
MOST_NUMBERS = 2**27  # in a tensor of a check, 1 GiB of float64: larger problems are checked on fewer rows
NO_NUMBER = 1e30  # an error that is NaN, which JSON does not have


def check(job: dict[str, Any], begun: float) -> dict[str, Any]:
    device, journal = detect(job["device"]), Journal(Path(job["journal"]))
    draw = inputs_of(job, device)
    judges: dict[str, Judge] = {}

    def judge(settings: KernelSettings) -> Judge:
        """Of the last problem alone: what it holds takes memory."""
        if settings.problem not in judges:
            judges.clear()
            judges[settings.problem] = Judge(settings, draw, device)
        return judges[settings.problem]

    with garbage_frozen():
        for _, name, settings in settings_of(job, begun):
            journal.enter(name, device, lambda s=settings: check_one(s, judge, draw, device))
    return {}


def trial(job: dict[str, Any], begun: float) -> dict[str, Any]:
    device, journal = detect(job["device"]), Journal(Path(job["journal"]))
    draw, stopwatch = inputs_of(job, device), ColdStopwatch(device)
    with Monitor(device) as monitor, garbage_frozen():
        for position, name, settings in settings_of(job, begun):
            measure = partial(time_one, job, position, settings, draw, device, stopwatch, monitor)
            journal.enter(name, device, lambda measure=measure: to_dict(measure()))
    return {}


def settings_of(job: dict[str, Any], begun: float) -> Iterator[tuple[int, str, KernelSettings]]:
    """(position, name, settings), one by one as long as there is time: half of the limit is for the last one alone."""
    for position, (name, data) in enumerate(job["settings"]):
        if position and time.perf_counter() - begun > job["time_limit_s"] / 2:
            return
        yield position, name, KernelSettings.from_dict(data)


def inputs_of(job: dict[str, Any], device: Device) -> Draw:
    """Elsewhere than on a GPU, that is in tests, nothing is bf16: Triton's interpreter multiplies that wrongly."""
    dtype = torch.bfloat16 if device.kind == "cuda" else torch.float32
    return Draw(device=device.torch_device(), seed=job["seed"], dtype=dtype)


class Journal:
    """A file of lines: whose turn it is, then its answer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def enter(self, name: str, device: Device, measure: Callable[[], dict[str, Any]]) -> None:
        """Keeps what a measurement returns, or how it failed.

        Raises:
            Exception: the measurement's, where the device is of no more use to this process.
        """
        self._write(begun=name)
        try:
            answer = {"status": "ok", "result": measure()}
        except Exception as error:  # any failure is this setting's alone
            traceback.print_exc()
            device.synchronize()  # after an illegal access this raises too
            answer = failure(error)
        self._write(name=name, answer=answer)
        gc.collect()  # of what this setting left, which takes no time: all else is set aside
        if device.kind == "cuda":
            torch.cuda.empty_cache()

    def _write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


# -- check -----------------------------------------------------------------------------------------------------------


class Judge:
    """Holds implementations of one problem against its specification in float64.

    Args:
        settings: of the problem; where it is large it is judged on fewer rows.
        draw: of the inputs.
        device: where it runs.
    """

    def __init__(self, settings: KernelSettings, draw: Draw, device: Device) -> None:
        case = settings.case
        self.settings, self.draw = settings, draw
        self.shape = case.cut(settings.workload.shape, min(MOST_NUMBERS, device.memory_bytes // 256))
        specification = Implementation(name="reference", title="reference", function=case.reference)
        self.truth = self._results(specification, widened(self.inputs()))
        plain = self._results(specification, self.inputs())
        self.allowed = {name: allowed(plain[name], truth) for name, truth in self.truth.items()}  # (largest, mean)

    def inputs(self) -> Inputs:
        return self.settings.case.inputs(self.shape, self.draw)

    def checks(self, implementation: Implementation) -> list[Check]:
        """Two for each output and each gradient: the largest error, and the mean one, where small numbers count too."""
        results = self._results(implementation, self.inputs())
        return [
            Check(what=what, value=value, bound=bound)
            for name, truth in self.truth.items()
            for what, value, bound in zip(
                (name, f"mean of {name}"), errors(results[name], truth), self.allowed[name], strict=True
            )
        ]

    def _results(self, implementation: Implementation, inputs: Inputs) -> Results:
        direction, case = self.settings.workload.direction, self.settings.case
        results = implementation.ready(inputs, direction, self.draw, case.unit_gradient)()
        return {name: flat(result) for name, result in results.items()}


def flat(result: Tensor | list[Tensor]) -> Tensor:
    """One tensor, also of a list of them."""
    return torch.cat([t.detach().flatten() for t in result]) if isinstance(result, list) else result.detach()


def errors(result: Tensor, truth: Tensor) -> tuple[float, float]:
    """The largest error and the mean; `NO_NUMBER` where there is NaN, or another shape."""
    if result.shape != truth.shape:
        return NO_NUMBER, NO_NUMBER
    off = (result.double() - truth).abs()
    largest, mean = (float(e.nan_to_num(nan=NO_NUMBER, posinf=NO_NUMBER)) for e in (off.max(), off.mean()))
    return largest, mean


def allowed(plain: Tensor, truth: Tensor) -> tuple[float, float]:
    """`FACTOR` times the plain path's own error and one unit in the last place of the largest, or mean, number."""
    eps, sizes = torch.finfo(plain.dtype).eps, (float(truth.abs().max()), float(truth.abs().mean()))
    largest, mean = (FACTOR * (error + eps * size) for error, size in zip(errors(plain, truth), sizes, strict=True))
    return largest, mean


def check_one(
    settings: KernelSettings, judge: Callable[[KernelSettings], Judge], draw: Draw, device: Device
) -> dict[str, Any]:
    """The first calls, of which the first compiles or tunes, and then what is computed."""
    case, direction, way = settings.case, settings.workload.direction, settings.way
    with way.around(device):
        inputs = case.inputs(settings.workload.shape, draw)
        device.synchronize()
        moments = [time.perf_counter()]
        call = way.ready(inputs, direction, draw, case.unit_gradient)
        for _ in range(FIRST_CALLS):
            call()
            device.synchronize()
            moments.append(time.perf_counter())
        del inputs, call  # room for float64
        checks = judge(settings).checks(way)
    return {
        "checks": [to_dict(c) for c in checks],
        "first_steps_ms": [(b - a) * 1e3 for a, b in zip(moments, moments[1:])],
    }


# -- trial -----------------------------------------------------------------------------------------------------------


def time_one(
    job: dict[str, Any], position: int, settings: KernelSettings, draw: Draw, device: Device, stopwatch: ColdStopwatch,
    monitor: Monitor,
) -> Trial:  # fmt: skip
    """One implementation's time; ``wall_ms`` is at least what the host needs to enqueue a call."""
    case, way, begun = settings.case, settings.way, time.perf_counter()
    if device.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with way.around(device):
        inputs = case.inputs(settings.workload.shape, draw)
        call = way.ready(inputs, settings.workload.direction, draw, case.unit_gradient)
        device.synchronize()
        ready = time.perf_counter()
        first = stopwatch(call, 1)
        stopwatch.outlast(call)
        calls = max(1, round(WARM_MS / turn_ms(stopwatch, call)))
        warm = warm_up(lambda times: stopwatch(call, times * calls), max_seconds=WARM_UP_S)
        blocks = steady_state(
            lambda times: stopwatch(call, times), monitor,
            step_ms=turn_ms(stopwatch, call), num_blocks=job["num_blocks"], min_block_ms=BLOCK_MS,
        )  # fmt: skip
    peak, reserved = peak_memory(device)
    flags = blocks.flags
    if device.kind == "cuda" and monitor.problem:
        flags.append(f"clocks and throttling not seen: {monitor.problem}")
    return Trial(
        index=job["trial"],
        position=position,
        steps_per_block=blocks.steps_per_block,
        device_ms=blocks.device_ms,
        wall_ms=blocks.wall_ms,
        setup_ms=(ready - begun) * 1e3,
        first_step_ms=first.wall_ms,
        warmup_steps=warm.steps * calls,
        warmup_settled=warm.settled,
        total_ms=(time.perf_counter() - begun) * 1e3,
        peak_memory_bytes=peak - stopwatch.buffer_bytes,
        peak_reserved_bytes=reserved,
        telemetry=blocks.telemetry,
        flags=flags,
    )


def turn_ms(stopwatch: ColdStopwatch, call: Callable[[], object], times: int = 3) -> float:
    """How long a call takes with the sweeps before it."""
    stretch = stopwatch(call, times)
    return (stretch.end - stretch.start) * 1e3 / times
