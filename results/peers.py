"""What a comparison with other projects holds: whole training runs, ours and theirs, one after the other on one device.

Kept like records, in a folder beside theirs, and like them without what can be worked out: `rows` does that on reading.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from results import stats, store
from results.schema import STATUSES, RecordError
from results.stats import Effect, Estimate

SUITE = "peers"
FOLDER = "peers"
OURS = "ours"
WORKLOAD = store.WORKLOAD_COUNTS["ladder"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process that trained; times are milliseconds per optimizer step."""

    index: int  # which trial, from 0
    position: int  # place in that trial's visiting order, from 0
    first_step_ms: float  # as it said itself; compiles
    warmup_steps: int
    warmup_settled: bool
    step_ms: list[float]  # as it said itself, one entry per timed step
    wall_step_ms: float  # mean over the same steps but the first, seen from outside: logging and all
    total_ms: float  # the whole process, start to end
    telemetry: dict[str, float] = field(default_factory=dict)  # medians under load: sm_clock_mhz, power_w, …
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One program: what it was, how it was started, what became of it."""

    title: str
    source: str  # where it can be had
    commit: str | None  # of the checkout; None where it does not say
    files_sha256: dict[str, str]  # of its files that were run, before anything was put in their place
    command: list[str]  # after the Python interpreter
    changes: list[str]  # constants that its command line does not offer, as they were put in
    notes: list[str]  # in which its step differs from ours
    status: str
    reason: str | None
    runs: list[Run]
    dirty: bool | None = None  # its files are not those of the commit; None where nobody could tell


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One session."""

    schema_version: int
    status: str  # "complete" or "partial"
    created_utc: str  # 2026-01-31T12:34:56Z
    device: dict[str, Any]  # as in a record, like the fields up to token_source
    environment: dict[str, Any]
    workload: dict[str, Any]
    rungs: list[str]  # of ours
    precision: str  # of ours
    seed: int
    token_source: dict[str, Any]
    harness: dict[str, Any]  # num_trials, num_steps, time_limit_s, seconds_total
    entrants: dict[str, Entrant]  # by name, "ours" among them
    suite: str = SUITE


@dataclass(frozen=True, kw_only=True)
class Row:
    """One program, worked out."""

    name: str
    entrant: Entrant
    step_ms: Estimate | None
    tokens_per_second: Estimate | None
    slowest: float | None  # trial, in tokens per second
    fastest: float | None
    wall_over_step: float | None  # the same steps seen from outside, over what it said itself
    ours_over: Effect | None  # how many times faster ours is, paired by trial; None for ours itself
    verdict: str | None  # about ours, in the words of stats.verdict


def rows(comparison: Comparison) -> list[Row]:
    """Every program, ours first and the others from the fastest to the slowest; those that failed last.

    There is no A/A pair, so a difference is claimed where its interval over the trials excludes 1.
    """
    medians = {name: trial_medians(entrant) for name, entrant in comparison.entrants.items()}
    workload = comparison.workload
    tokens = math.prod(workload[key] for key in WORKLOAD)
    found = []
    for name, entrant in comparison.entrants.items():
        times = list(medians[name].values())
        speeds = [tokens / ms * 1e3 for ms in times]
        over = stats.paired(medians[name], medians[OURS]) if name != OURS else None
        outside = [run.wall_step_ms / fmean(run.step_ms[1:]) for run in entrant.runs]
        found.append(
            Row(
                name=name,
                entrant=entrant,
                step_ms=stats.estimate(times) if times else None,
                tokens_per_second=stats.estimate(speeds) if times else None,
                slowest=min(speeds, default=None),
                fastest=max(speeds, default=None),
                wall_over_step=stats.median(outside) if times else None,
                ours_over=over,
                verdict=stats.verdict(over, 0.0),
            )
        )
    return sorted(found, key=lambda row: (row.name != OURS, row.step_ms.value if row.step_ms else math.inf, row.name))


def trial_medians(entrant: Entrant) -> dict[int, float]:
    """Trial -> median ms per step; empty for one that failed, whatever it did before."""
    return {run.index: stats.median(run.step_ms) for run in entrant.runs} if entrant.status == "ok" else {}


def speed_of_ours(comparison: Comparison) -> float:
    """Tokens per second, 0 where ours failed."""
    ours = rows(comparison)[0].tokens_per_second
    return ours.value if ours else 0.0


def folder(records_dir: Path) -> Path:
    """Where the comparisons lie that belong to some records: in the folder beside theirs."""
    return Path(records_dir).parent / FOLDER


def write(comparison: Comparison, directory: Path) -> Path:
    """Writes a comparison atomically under its own name; as `store.write`."""
    return store.write(comparison, directory, check)


def load(path: Path) -> Comparison:
    """Reads one comparison and checks it; as `store.load`."""
    return store.load(path, Comparison, check)


def load_all(directory: Path, device: str | None = None) -> tuple[list[tuple[Path, Comparison]], list[str]]:
    """Reads every comparison under a folder; as `store.load_all`."""
    return store.load_all(directory, device, load)


def choose(comparisons: Iterable[tuple[Path, Comparison]], device: str) -> tuple[Path, Comparison] | None:
    """The comparison that speaks for a device: one of several trials before a single one, then the newest."""
    mine = [(path, c) for path, c in comparisons if c.device["slug"] == device]
    return max(mine, key=lambda pair: (_has_intervals(pair[1]), pair[1].created_utc, pair[0].name), default=None)


def check(comparison: Comparison) -> None:
    """Makes sure that a comparison says what every reader counts on and the field types alone do not.

    Raises:
        RecordError: naming the field, its value and what it must be.
    """
    store.check_origin(comparison)
    if comparison.suite != SUITE:
        raise RecordError(f"record.suite is {comparison.suite!r}, not {SUITE!r}")
    store.check_workload("record.workload", comparison.workload, WORKLOAD)
    if OURS not in comparison.entrants:
        raise RecordError(f"record.entrants has {', '.join(comparison.entrants) or 'nothing'}, not {OURS!r}")
    for name, entrant in comparison.entrants.items():
        where = f"record.entrants[{name!r}]"
        if entrant.status not in STATUSES:
            raise RecordError(f"{where}.status is {entrant.status!r}; it must be one of {', '.join(STATUSES)}")
        if entrant.status == "ok" and not entrant.runs:
            raise RecordError(f"{where} is ok and has no runs")
        for run in entrant.runs:
            if len(run.step_ms) < 2 or not all(ms > 0 for ms in run.step_ms):
                raise RecordError(f"{where}: trial {run.index} has less than two step_ms, or one that is not positive")


def _has_intervals(comparison: Comparison) -> bool:
    return any(row.ours_over is not None and row.ours_over.low is not None for row in rows(comparison))
