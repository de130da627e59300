"""What a profile holds: where the time of one step went, kernel by kernel, as the device's own tracer saw it.

Kept like records, in a folder beside theirs, and like them without what can be worked out: to which part of the model a
kernel belongs is settled on reading (`results.parts`), how far each part is from its bound is `results.gaps`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results import store
from results.schema import RecordError, Trial

SUITE = "profile"
FOLDER = "profiles"
KINDS = ("kernel", "copy", "fill", "operator")
PHASES = ("forward", "backward", "update", "")
MODEL = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "rows")
WORKLOAD = store.WORKLOAD_COUNTS["ladder"]
ROUNDING = 1e-3  # what the sum of shares may differ from the busy time, relative


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Everything of one name that was launched in the same way: per step, the mean over those that count.

    Args:
        name: as the tracer gives it.
        kind: on a GPU "kernel", "copy" or "fill"; on a processor "operator", whose time is without those that it calls.
        phase: what the step was at when it was launched: "forward", "backward", "update", or "" where nobody can tell.
        launched_by: operators, outermost first; empty where the trace does not tell.
        shapes: of the innermost operator's tensors; left out in the update.
        neighbours: where no operator is known, as in a CUDA graph: the two kernels before it and the one after,
            "" where there is none.
        calls: per step.
        ms: durations added up, per step.
        share_ms: of the clock, per step: where several run at once, each has an equal share. They add up to `busy_ms`.
    """

    name: str
    kind: str
    phase: str
    launched_by: list[str]
    shapes: list[list[int]]
    calls: float
    ms: float
    share_ms: float
    neighbours: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Some steps of one setting under the profiler, and the same steps timed without it."""

    schema_version: int
    created_utc: str  # 2026-01-31T12:34:56Z
    profile: str  # name of the workload's profile
    custom: bool  # the workload or the rungs were not the profile's own
    device: dict[str, Any]  # as in a record, like the fields up to roofline
    environment: dict[str, Any]
    workload: dict[str, Any]
    rungs: list[str]
    precision: str
    seed: int
    token_source: dict[str, Any]
    peaks: dict[str, Any]
    # components_ms: the bounds of the parts; peaks: "measured" or "datasheet". None where peaks are not known.
    roofline: dict[str, Any] | None
    model: dict[str, int]  # its sizes, see MODEL; rows of the embedding table, padding included
    trial: Trial  # without the profiler, in the same process, just before
    num_steps: int  # traced
    num_counted: int  # without the slowest and the fastest ones; what follows is their mean
    traced_step_ms: float  # from the first kernel of a step to the first of the next
    busy_ms: float  # per step: at least one kernel runs; on a processor, an operator
    kernels: list[Kernel]
    flags: list[str] = field(default_factory=list)
    suite: str = SUITE


def folder(records_dir: Path) -> Path:
    """Where the profiles lie that belong to some records: in the folder beside theirs."""
    return Path(records_dir).parent / FOLDER


def write(profile: Profile, directory: Path) -> Path:
    """Writes a profile atomically under its own name; as `store.write`."""
    return store.write(profile, directory, check)


def load(path: Path) -> Profile:
    """Reads one profile and checks it; as `store.load`."""
    return store.load(path, Profile, check)


def load_all(directory: Path, device: str | None = None) -> tuple[list[tuple[Path, Profile]], list[str]]:
    """Reads every profile under a folder; as `store.load_all`."""
    return store.load_all(directory, device, load)


def choose(profiles: Iterable[tuple[Path, Profile]], device: str) -> tuple[Path, Profile] | None:
    """The profile that speaks for a device: the profile's own workload and rungs before others, then the newest."""
    mine = [(path, p) for path, p in profiles if p.device["slug"] == device]
    return max(mine, key=lambda pair: (not pair[1].custom, pair[1].created_utc, pair[0].name), default=None)


def check(profile: Profile) -> None:
    """Makes sure that a profile says what every reader counts on and the field types alone do not.

    Raises:
        RecordError: naming the field, its value and what it must be.
    """
    store.check_origin(profile)
    if profile.suite != SUITE:
        raise RecordError(f"record.suite is {profile.suite!r}, not {SUITE!r}")
    store.check_workload("record.workload", profile.workload, WORKLOAD)
    store.check_workload("record.model", profile.model, MODEL)
    for name in ("num_steps", "num_counted", "traced_step_ms", "busy_ms"):
        if not getattr(profile, name) > 0:
            raise RecordError(f"record.{name} is {getattr(profile, name)}, not positive")
    if not profile.trial.device_ms or not all(ms > 0 for ms in profile.trial.device_ms):
        raise RecordError("record.trial has no device_ms, or one that is not positive")
    if profile.roofline is not None:
        _check_roofline(profile.roofline, profile.peaks)
    for i, kernel in enumerate(profile.kernels):
        where = f"record.kernels[{i}]"
        if kernel.kind not in KINDS or kernel.phase not in PHASES:
            raise RecordError(
                f"{where} is a {kernel.kind!r} of phase {kernel.phase!r}, which this version does not know"
            )
        if not (kernel.calls > 0 and kernel.ms >= 0 and 0 <= kernel.share_ms <= kernel.ms * (1 + ROUNDING)):
            raise RecordError(f"{where} has {kernel.calls} calls, {kernel.ms} ms and a share of {kernel.share_ms} ms")
    total = sum(kernel.share_ms for kernel in profile.kernels)
    if abs(total - profile.busy_ms) > ROUNDING * profile.busy_ms:
        raise RecordError(f"record.busy_ms is {profile.busy_ms}, and the kernels' shares add up to {total}")


def _check_roofline(roofline: dict[str, Any], peaks: dict[str, Any]) -> None:
    bounds, dtype, rates = (roofline.get(key) for key in ("components_ms", "dtype", "peaks"))
    if not isinstance(bounds, dict) or not all(isinstance(ms, (int, float)) and ms >= 0 for ms in bounds.values()):
        raise RecordError(f"record.roofline['components_ms'] is {bounds!r}, not milliseconds by part")
    used = peaks.get(rates) if rates in ("measured", "datasheet") else None
    if not isinstance(used, dict) or dtype not in used.get("tflops", {}) or "bandwidth_gbps" not in used:
        raise RecordError(
            f"record.roofline was worked out from {rates!r} peaks in {dtype!r}, which record.peaks does not hold"
        )
