"""One measurement in one fresh process: `python -m bench.worker JOB.json`, or the same under torchrun.

A job names its kind and everything it needs; the answer is written beside it as JSON. Whatever goes wrong here becomes the
answer's status and reason, so that the session goes on.

    peaks   what the device reaches on a matrix product and a copy
    parity  the setting's first steps, for comparison with fp32
    trial   the setting's steady state
"""

import argparse
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from bench.launch import turn_files
from bench.parity import NUM_STEPS, OPTIMIZER, trajectory
from bench.timing import steady_state, stopwatch, warm_up
from hardware import Device, Monitor, detect, measured_peaks, peak_memory
from optim_ladder import Settings, TrainStep, build
from results.schema import Trial, to_dict

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate", "status_alloc_failed")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("job", type=Path, help="JSON written by the session")
    job = json.loads(parser.parse_args().job.read_text())
    die_with_parent()
    try:
        answer = {"status": "ok", "result": KINDS[job["kind"]](job, begun)}
    except Exception as error:  # the process's boundary: any failure becomes the setting's status
        traceback.print_exc()
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        oom = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error).lower() for w in OUT_OF_MEMORY)
        answer = {"status": "oom" if oom else "crashed", "reason": reason}
    out = Path(job["answer"])
    first_failure = answer["status"] != "ok" and not out.exists()  # what other ranks then run into is its consequence
    if first_failure or (answer["status"] == "ok" and int(os.environ.get("RANK", 0)) == 0):
        partial = out.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(answer))
        partial.replace(out)
    return 0 if answer["status"] == "ok" else 1


def peaks(job: dict, begun: float) -> dict:
    return measured_peaks(detect(job["device"]), budget_s=job["budget_s"])


def parity(job: dict, begun: float) -> dict:
    settings, device = prepare(job)
    with build(settings, device, seed=job["seed"], optimizer=OPTIMIZER) as step:
        first_steps = trajectory(step, load_batches(job, settings, step)[:NUM_STEPS])
        return {"trajectory": first_steps.to_dict(), "peak_memory_bytes": peak_memory(device)[0]}


def trial(job: dict, begun: float) -> dict:
    settings, device = prepare(job)
    with build(settings, device, seed=job["seed"], dropout=job.get("dropout")) as step, Monitor(device) as monitor:
        batches = cycle(load_batches(job, settings, step))
        timed = stopwatch(device)

        def one_step() -> None:
            step(next(batches))

        def measure(times: int):
            return timed(one_step, times)

        device.synchronize()
        ready = time.perf_counter()
        first = measure(1)
        warm = warm_up(measure, agree=agree)
        if device.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        blocks = steady_state(
            measure, monitor, step_ms=warm.step_ms, num_blocks=job["num_blocks"], agree=agree, turn=turns(job)
        )
        peak, reserved = peak_memory(device)
        flags = blocks.flags
        if device.kind == "cuda" and monitor.problem:
            flags.append(f"clocks and throttling not seen: {monitor.problem}")
        return to_dict(
            Trial(
                index=job["trial"],
                position=job["position"],
                steps_per_block=blocks.steps_per_block,
                device_ms=blocks.device_ms,
                wall_ms=blocks.wall_ms,
                setup_ms=(ready - begun) * 1e3,
                first_step_ms=first.wall_ms,
                warmup_steps=warm.steps,
                warmup_settled=warm.settled,
                total_ms=(time.perf_counter() - begun) * 1e3,
                peak_memory_bytes=peak,
                peak_reserved_bytes=reserved,
                telemetry=blocks.telemetry,
                flags=flags,
            )
        )


KINDS = {"peaks": peaks, "parity": parity, "trial": trial}


def prepare(job: dict) -> tuple[Settings, Device]:
    settings, device = Settings.from_dict(job["settings"]), detect(job["device"])
    if device.kind == "cpu" and settings.workload.world_size > 1:
        torch.set_num_threads(max(1, device.count // settings.workload.world_size))
    return settings, device


def load_batches(job: dict, settings: Settings, step: TrainStep) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """This process's share of the session's batches: per step, one (idx, targets) per micro-batch, on the device.

    Every setting of one size sees the same sequences in the same step, however they are cut up: micro-batch ``a`` of
    process ``r`` is rows ``(a · world_size + r) · B`` onwards.
    """
    w, rank = settings.workload, int(os.environ.get("RANK", 0))
    arrays = np.load(job["batches"])
    idx, targets = (torch.from_numpy(arrays[name]).to(step.target) for name in ("idx", "targets"))
    first_rows = [(a * w.world_size + rank) * w.micro_batch for a in range(w.grad_accumulation)]
    return [
        [(idx[i, row : row + w.micro_batch], targets[i, row : row + w.micro_batch]) for row in first_rows]
        for i in range(len(idx))
    ]


def agree(value):
    """Rank 0's value, on every rank: a group must take the same number of steps."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def turns(job: dict) -> Callable[[], object] | None:
    """A function that waits for this process's turn; None where the job takes none."""
    if job["turns"] is None:
        return None
    go, ready = turn_files(Path(job["turns"]))
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        ready_pipe, go_pipe = ready.open("wb", buffering=0), go.open("rb", buffering=0)

    def wait() -> None:
        if rank == 0:
            ready_pipe.write(b"\n")
            go_pipe.read(1)
        agree(None)  # the other ranks wait for rank 0

    return wait


def die_with_parent() -> None:
    """On Linux, no worker outlives the process that started it, even one that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
