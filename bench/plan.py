"""What a session is going to measure: options checked, ladders derived, every distinct setting named once."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hardware import Device
from optim_ladder import DERIVATIONS, LADDER, Place, Rung, Settings, Workload, derive, in_order, profile, unknown

SUITES = ("ladder",)
BASELINE, BASELINE_AGAIN = "baseline", "baseline-again"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How much is measured.

    Args:
        num_trials: fresh processes per setting; one gives no interval. Even numbers complete the mirrored orders.
        num_blocks: timed blocks per trial.
        time_limit_s: for one process.
    """

    num_trials: int = 6
    num_blocks: int = 20
    time_limit_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("num_trials", "num_blocks", "time_limit_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")

    @classmethod
    def default(cls, device: Device) -> "Schedule":
        """More blocks on a CPU, where what else runs there makes single blocks differ by a tenth."""
        return cls(num_blocks=30) if device.kind == "cpu" else cls()

    def quick(self) -> "Schedule":
        """A smoke run: one trial of a few blocks."""
        return replace(self, num_trials=1, num_blocks=5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One session, before it is measured.

    Args:
        device: where.
        profile: name of the workload's profile.
        custom: the user changed the profile's workload or kept to some rungs.
        workload: of one process.
        rungs: the part of the ladder in use.
        derivations: the ladders, place by place.
        settings: every distinct setting by its id, the baseline first and its twin, for the noise floor, second.
        schedule: how much.
        quick: labelled "indicative".
        seed: of weights, batches and visiting order.
        results_dir: where records go.
        charts_dir: where charts go.
    """

    device: Device
    profile: str
    custom: bool
    workload: Workload
    rungs: tuple[Rung, ...]
    derivations: dict[str, list[Place]]
    settings: dict[str, Settings]
    schedule: Schedule
    quick: bool
    seed: int
    results_dir: Path
    charts_dir: Path


def make_plan(
    device: Device,
    *,
    derivation: str = "cumulative",
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
        derivation: one of `DERIVATIONS`, or "all".
        rungs: names to keep to; None takes the whole ladder.
        profile_name: instead of the one found by the device's name.
        model, micro_batch, seq_len: instead of the profile's.
        schedule: how much to measure.
        quick: one trial of few blocks.
        seed, results_dir, charts_dir: see `Plan`.

    Raises:
        ValueError: an unknown name, a size that is not positive, rungs that exclude each other or lack what they need.
    """
    if derivation != "all" and derivation not in DERIVATIONS:
        raise unknown("derivation", derivation, [*DERIVATIONS, "all"])
    name, workload = profile(device, profile_name)
    changes = {"model": model, "micro_batch": micro_batch, "seq_len": seq_len}
    workload = replace(workload, **{key: value for key, value in changes.items() if value is not None})
    if not workload.is_transformer:
        raise ValueError(f"model is {workload.model!r}, a table without a matrix product to measure; choose a transformer")
    chosen = LADDER if rungs is None else in_order(rungs)
    if rungs is not None:
        # Checked as if all were on at once, so that a missing need or two rungs of one slot are an error, not a skip.
        Settings(workload=workload, rungs=tuple(r.name for r in chosen))
    names = DERIVATIONS if derivation == "all" else (derivation,)
    if "scaling" in names and not any(r.scaling for r in chosen):
        if derivation == "scaling":
            raise ValueError("derivation 'scaling' needs rung 'ddp'; add it to --rungs")
        names = tuple(n for n in names if n != "scaling")
    derivations = {n: derive(n, chosen, device, workload) for n in names}
    baseline = Settings(workload=workload)
    settings = {BASELINE: baseline, BASELINE_AGAIN: baseline}
    for places in derivations.values():
        settings |= {place.settings.id: place.settings for place in places if place.settings is not None}
    if len(settings) == 2:
        reasons = {p.label: p.skipped for places in derivations.values() for p in places if p.skipped}
        told = "; ".join(f"{label}: {reason}" for label, reason in reasons.items()) or "no rung of that derivation is named"
        raise ValueError(f"nothing to measure beside the baseline ({told}); name other rungs in --rungs")
    schedule = schedule or Schedule.default(device)
    return Plan(
        device=device,
        profile=name,
        custom=rungs is not None or profile_name is not None or any(v is not None for v in changes.values()),
        workload=workload,
        rungs=tuple(chosen),
        derivations=derivations,
        settings=settings,
        schedule=schedule.quick() if quick else schedule,
        quick=quick,
        seed=seed,
        results_dir=results_dir,
        charts_dir=charts_dir,
    )
