"""What follows from records: the one place where a number shown in a table, a chart or the README is worked out.

A record keeps raw times; everything here is derived from them on reading, by one function each.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import stats
from results.bounds import bound
from results.schema import Check, Measurement, Record, Step
from results.stats import Effect, Estimate

if TYPE_CHECKING:
    import pandas

AGAIN = "-again"  # behind the name of a setting that is measured once more, to see how far apart equals come out
BASELINE, BASELINE_AGAIN = "baseline", "baseline" + AGAIN
CUMULATIVE, SINGLE, LEAVE_ONE_OUT, CHOICES, SCALING = "cumulative", "single", "leave-one-out", "choices", "scaling"
BATCH = "batch"  # of sampling: everything on, for more and more sequences at once
LADDER, SAMPLING, KERNELS = "ladder", "sampling", "kernels"  # suites
SKIPPED = "skipped"
# Two measurements of a suite answer one question only where these are the same.
SAME_WORKLOAD = {LADDER: ("model", "seq_len"), SAMPLING: ("model", "context", "batch")}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One place on a ladder with all that is shown about it; ``None`` where it was not measured or has no meaning."""

    label: str
    title: str
    measurement: str | None
    previous: str | None  # the measurement that over_previous is over
    status: str  # one of schema.STATUSES, or "skipped"
    reason: str | None
    rungs: list[str]
    world_size: int
    tokens_per_second: Estimate | None = None  # per GPU
    tokens_per_second_p20: float | None = None  # over all blocks of all trials
    tokens_per_second_p80: float | None = None
    step_ms: Estimate | None = None
    over_baseline: Effect | None = None
    over_baseline_verdict: str | None = None
    over_previous: Effect | None = None  # over the rung before; in leave-one-out and choices, over all rungs on
    over_previous_verdict: str | None = None
    mfu_full: float | None = None  # shares of 1
    mfu_causal: float | None = None
    roofline_share: float | None = None
    peak_memory_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    compile_ms: float | None = None  # how much longer the session's first step of this setting took than the next ones
    loss_drift: float | None = None  # nats
    loss_bound: float | None = None
    checks: list[Check] = field(default_factory=list)
    first_token_ms: Estimate | None = None
    host_overhead: float | None = None  # share of wall time that the device did not see
    warmup_steps: int | None = None
    flags: list[str] = field(default_factory=list)

    @property
    def is_baseline(self) -> bool:
        return self.measurement == BASELINE

    @property
    def failed(self) -> bool:
        """Neither measured nor skipped: out of memory, crashed, hung, wrong or not reached."""
        return self.status not in ("ok", SKIPPED)


@dataclass(frozen=True, kw_only=True)
class Best:
    """The fastest setting known for a device, and where that is known from."""

    path: Path
    record: Record
    measurement: Measurement
    tokens_per_second: Estimate  # per GPU
    over_baseline: Effect | None
    over_baseline_verdict: str | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One setting in two records; the effect is of b over a, per GPU."""

    id: str
    label: str
    a: Estimate | None  # tokens per second per GPU
    b: Estimate | None
    effect: Effect | None
    verdict: str | None
    note: str | None  # why there is no effect, or what else differs


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """One number of processes."""

    processes: int
    status: str
    reason: str | None
    total: Estimate | None  # tokens per second of all processes
    per_process: Estimate | None
    efficiency: Effect | None  # speed of one process here over its speed alone


def rows(record: Record, derivation: str = CUMULATIVE) -> list[Row]:
    """Every place of one derived ladder, in order, skipped and failed ones included; empty if not in the record."""
    floor = noise_floor(record)
    return [_row(record, step, floor) for step in record.derivations.get(derivation, [])]


def measurement_row(record: Record, name: str) -> Row:
    """One measurement apart from any ladder: only the comparison with the baseline is made.

    Args:
        record: the session.
        name: a key of ``record.measurements``.
    """
    step = Step(label=name, title=_setting_labels(record).get(name, name), measurement=name, previous=None)
    return _row(record, step, noise_floor(record))


def noise_floor(record: Record) -> float | None:
    """How far what was measured twice came out from itself, as a share of 1; ``None`` where nothing was.

    On a ladder that is the baseline; of kernels, all pairs together.
    """
    first, again = {}, {}
    for name, twin in record.measurements.items():
        if name.endswith(AGAIN):
            of = name.removesuffix(AGAIN)
            first |= {(of, i): ms for i, ms in trial_times(record.measurements.get(of)).items()}
            again |= {(of, i): ms for i, ms in trial_times(twin).items()}
    return stats.noise_floor(first, again)


def frame(record: Record) -> "pandas.DataFrame":
    """All rows of all derivations as one table, a column for each number (``over_baseline_low``, …)."""
    import pandas

    flat = []
    for derivation in record.derivations:
        for row in rows(record, derivation):
            line: dict[str, Any] = {"derivation": derivation}
            for name, value in asdict(row).items():
                if isinstance(getattr(row, name), (Estimate, Effect)):
                    line |= {name if key in ("value", "ratio") else f"{name}_{key}": v for key, v in value.items()}
                else:
                    line[name] = (
                        " + ".join(value) if name == "rungs" else "; ".join(value) if name == "flags" else value
                    )
            flat.append(line)
    return pandas.DataFrame(flat)


def choose(
    records: Iterable[tuple[Path, Record]], device: str, derivation: str = CUMULATIVE, suite: str = LADDER
) -> tuple[Path, Record] | None:
    """The record of a suite that speaks for a device: complete and full before quick, the profile's own workload before one
    that was asked for, more rungs before fewer, then the newest."""
    mine = [
        (p, r) for p, r in records if r.device["slug"] == device and r.suite == suite and derivation in r.derivations
    ]

    def weight(pair: tuple[Path, Record]) -> tuple:
        path, record = pair
        measured = sum(step.measurement is not None for step in record.derivations[derivation])
        return _is_full(record), not record.custom, measured, record.created_utc, path.name

    return max(mine, key=weight, default=None)


def best(
    records: Iterable[tuple[Path, Record]],
    device: str,
    model: str | None = None,
    seq_len: int | None = None,
    *,
    suite: str = LADDER,
) -> Best | None:
    """The fastest setting of a device that is known to be right.

    Every setting (rungs and workload) counts once, by its newest measurement; one from a full session goes before one
    from a quick session. If that measurement failed or was wrong, the setting does not count.

    Args:
        records: as `store.load_all` gives them.
        device: slug.
        model, seq_len: keep to this model and this sequence length; by default those of the record that speaks for the
            device, so that two workloads are never set against each other.
        suite: whose settings.
    """
    records = list(records)
    same = {key: value for key, value in (("model", model), ("seq_len", seq_len)) if value is not None}
    if spokesman := choose(records, device, suite=suite):
        same = {key: spokesman[1].workload.get(key) for key in SAME_WORKLOAD[suite]} | same
    newest: dict[str, tuple[tuple[bool, str, str], Path, Record, Measurement]] = {}
    for path, record in records:
        if record.device["slug"] != device or record.suite != suite:
            continue
        for m in record.measurements.values():
            other = any(m.workload.get(key) != value for key, value in same.items())
            if other or m.id == BASELINE_AGAIN or m.status == "not run":
                continue
            age = (not record.quick, record.created_utc, path.name)
            setting = json.dumps([m.rungs, m.workload], sort_keys=True)
            if setting not in newest or age > newest[setting][0]:
                newest[setting] = (age, path, record, m)
    found = []
    for _, path, record, m in newest.values():
        if speed := _tokens_per_second(m):
            effect = _effect(record, BASELINE, m.id)
            found.append(
                Best(
                    path=path,
                    record=record,
                    measurement=m,
                    tokens_per_second=speed,
                    over_baseline=effect,
                    over_baseline_verdict=stats.verdict(effect, noise_floor(record)),
                )
            )
    return max(found, key=lambda b: b.tokens_per_second.value, default=None)


def compare(a: Record, b: Record) -> list[Comparison]:
    """Two records setting by setting: did anything move?

    The sessions share no trial, so the intervals are Welch's; a difference must exceed the larger noise floor of both.
    """
    floors = [f for f in (noise_floor(a), noise_floor(b)) if f is not None]
    floor = max(floors) if len(floors) == 2 else None
    labels = _setting_labels(b) | _setting_labels(a)
    out = []
    for name in [*a.measurements, *(m for m in b.measurements if m not in a.measurements)]:
        ma, mb = a.measurements.get(name), b.measurements.get(name)
        effect = stats.welch(list(_token_times(ma).values()), list(_token_times(mb).values()))
        out.append(
            Comparison(
                id=name,
                label=labels.get(name, name),
                a=_tokens_per_second(ma) if ma else None,
                b=_tokens_per_second(mb) if mb else None,
                effect=effect,
                verdict=stats.verdict(effect, floor),
                note=_comparison_note(ma, mb),
            )
        )
    return out


def differences(a: Record, b: Record) -> list[str]:
    """What besides the code may have moved the numbers between two records, a line each; empty where nothing did."""
    lines = []
    if a.device["slug"] != b.device["slug"]:
        lines.append(f"device: {a.device['name']} against {b.device['name']}")
    for name, here, there in (("workload", a.workload, b.workload), ("environment", a.environment, b.environment)):
        for key in sorted(here.keys() | there.keys()):
            if (name == "workload" or key in COMPARED_ENVIRONMENT) and here.get(key) != there.get(key):
                label = "harness" if key == "harness_sha256" else key
                lines.append(f"{label}: {_short(here.get(key))} against {_short(there.get(key))}")
    for record, which in ((a, "first"), (b, "second")):
        if record.quick:
            lines.append(f"the {which} record is a quick one: one trial, no intervals")
    return lines


COMPARED_ENVIRONMENT = ("torch", "triton", "cuda", "cudnn", "driver", "python", "harness_sha256")


def scaling(record: Record) -> list[Scaling]:
    """How speed grows with the number of processes; empty if the record did not measure it."""
    steps = record.derivations.get(SCALING, [])
    alone = next((s.measurement for s in steps if s.label == "1"), None)
    out = []
    for step in steps:
        row, processes = _row(record, step, None), int(step.label)
        each = row.tokens_per_second
        out.append(
            Scaling(
                processes=processes,
                status=row.status,
                reason=row.reason,
                total=_scale(each, processes),
                per_process=each,
                efficiency=_effect(record, alone, step.measurement) if alone and step.measurement else None,
            )
        )
    return out


def _row(record: Record, step: Step, floor: float | None) -> Row:
    m = record.measurements.get(step.measurement) if step.measurement else None
    if m is None:
        status, reason = (SKIPPED, step.skipped) if step.skipped else ("not run", "the session ended before it")
        return Row(
            label=step.label,
            title=step.title,
            measurement=None,
            previous=None,
            status=status,
            reason=reason,
            rungs=[],
            world_size=record.workload.get("world_size", 1),
        )
    parity = {"loss_drift": m.parity.loss_drift, "loss_bound": m.parity.loss_bound} if m.parity else {}
    identity = {"label": step.label, "title": step.title, "measurement": m.id, "previous": step.previous}
    identity |= {"rungs": m.rungs, "world_size": m.workload.get("world_size", 1), "checks": m.checks}
    identity |= {"flags": _flags(record, m), **parity}
    speed = _tokens_per_second(m)
    if speed is None:
        status = "not run" if m.status == "ok" else m.status  # passed parity, then the session was interrupted
        reason = m.reason or ("interrupted before its first trial" if m.status == "ok" else None)
        return Row(status=status, reason=reason, **identity)

    blocks = [ms for trial in m.trials for ms in trial.device_ms]
    tokens = _tokens_per_step(m)
    over_baseline = _effect(record, BASELINE, m.id) if m.id != BASELINE else None
    over_previous = _effect(record, step.previous, m.id) if step.previous and step.previous != m.id else None
    mfu = None if m.quantised else record.mfu_peak
    reserved = [t.peak_reserved_bytes for t in m.trials if t.peak_reserved_bytes is not None]
    first_tokens = [stats.median(t.first_token_ms) for t in m.trials if t.first_token_ms]

    def utilisation(convention: str) -> float | None:
        flops = record.flops_per_token.get(convention)
        return speed.value * flops / (mfu["tflops"] * 1e12) if mfu and flops else None

    return Row(
        status=m.status,
        reason=m.reason,
        tokens_per_second=speed,
        tokens_per_second_p20=tokens / stats.percentile(blocks, 80) * 1e3,
        tokens_per_second_p80=tokens / stats.percentile(blocks, 20) * 1e3,
        step_ms=stats.estimate(list(trial_times(m).values())),
        over_baseline=over_baseline,
        over_baseline_verdict=stats.verdict(over_baseline, floor),
        over_previous=over_previous,
        over_previous_verdict=stats.verdict(over_previous, floor),
        mfu_full=utilisation("full"),
        mfu_causal=utilisation("causal"),
        roofline_share=_roofline_share(record, m, speed),
        peak_memory_bytes=max(t.peak_memory_bytes for t in m.trials),
        peak_reserved_bytes=max(reserved) if reserved else None,
        compile_ms=_compile_ms(m.first_steps_ms),
        first_token_ms=stats.estimate(first_tokens) if first_tokens else None,
        host_overhead=stats.median(_host_share(t.wall_ms, t.device_ms) for t in m.trials),
        warmup_steps=max(t.warmup_steps for t in m.trials),
        **identity,
    )


def trial_times(m: Measurement | None) -> dict[int, float]:
    """Trial index -> its median step time in ms; empty unless the setting is right and was timed."""
    return {t.index: stats.median(t.device_ms) for t in m.trials} if m and m.status == "ok" else {}


def _tokens_per_step(m: Measurement) -> float:
    """Tokens that one process takes in, or writes, per step; 1 where a step is known by its work and has no tokens."""
    if m.work:
        return m.work.get("tokens", 1.0)
    return m.workload["micro_batch"] * m.workload["seq_len"] * m.workload["grad_accumulation"]


def _roofline_share(record: Record, m: Measurement, speed: Estimate) -> float | None:
    """Of the best the device could do: of the record's roofline, or where a step is known by its work, of that's bound."""
    if m.work:
        least = bound(m.work, m.precision, record.peaks.get("measured"))
        return least.ms / (_tokens_per_step(m) / speed.value * 1e3) if least else None
    return speed.value / record.roofline["tokens_per_second"] if record.roofline else None


def _token_times(m: Measurement | None) -> dict[int, float]:
    """Trial index -> ms per token and process: what stays comparable when a workload had to be split differently."""
    return {i: ms / _tokens_per_step(m) for i, ms in trial_times(m).items()} if m else {}


def _tokens_per_second(m: Measurement) -> Estimate | None:
    times = list(trial_times(m).values())
    if not times:
        return None
    step, k = stats.estimate(times), _tokens_per_step(m) * 1e3
    low, high = (None, None) if step.low is None or step.high is None else (k / step.high, k / step.low)
    return Estimate(value=k / step.value, low=low, high=high, n=step.n)


def _effect(record: Record, a: str, b: str) -> Effect | None:
    return stats.paired(_token_times(record.measurements.get(a)), _token_times(record.measurements.get(b)))


def _compile_ms(first_steps_ms: Sequence[float]) -> float | None:
    return max(0.0, first_steps_ms[0] - stats.median(first_steps_ms[1:])) if len(first_steps_ms) > 1 else None


def _scale(e: Estimate | None, k: int) -> Estimate | None:
    if e is None:
        return None
    return Estimate(value=e.value * k, low=e.low and e.low * k, high=e.high and e.high * k, n=e.n)


def _host_share(wall_ms: Sequence[float], device_ms: Sequence[float]) -> float:
    wall = stats.median(wall_ms)
    return max(0.0, (wall - stats.median(device_ms)) / wall)


def _flags(record: Record, m: Measurement) -> list[str]:
    flags = list(m.flags)
    here, asked = ([w.get(key) for key in ("micro_batch", "grad_accumulation")] for w in (m.workload, record.workload))
    if here != asked:
        flags.append(f"micro-batch {here[0]} × {here[1]} accumulated, not {asked[0]} × {asked[1]}: it did not fit")
    if restless := sum(not t.warmup_settled for t in m.trials):
        flags.append(f"warm-up did not settle in {restless} of {len(m.trials)} trials")
    by_flag: dict[str, list[int]] = {}
    for trial in m.trials:
        for flag in trial.flags:
            by_flag.setdefault(flag, []).append(trial.index + 1)
    for flag, trials in by_flag.items():
        flags.append(f"{flag} (trial {', '.join(map(str, trials))})")
    return flags


def _is_full(record: Record) -> bool:
    return record.status == "complete" and not record.quick


def _setting_labels(record: Record) -> dict[str, str]:
    labels = {BASELINE: "baseline", BASELINE_AGAIN: "baseline, again"}
    wording = {CUMULATIVE: "… + {}", SINGLE: "{} alone"} | dict.fromkeys((LEAVE_ONE_OUT, CHOICES, SCALING, BATCH), "{}")
    for derivation, words in wording.items():
        for step in record.derivations.get(derivation, []):
            if step.measurement:
                labels.setdefault(step.measurement, words.format(step.title))
    return labels


def _comparison_note(a: Measurement | None, b: Measurement | None) -> str | None:
    if a is None or b is None:
        return "only in the second record" if a is None else "only in the first record"
    failed = [f"{which}: {m.reason or m.status}" for which, m in (("first", a), ("second", b)) if m.status != "ok"]
    if failed:
        return "; ".join(failed)
    moved = [k for k in sorted(a.workload.keys() | b.workload.keys()) if a.workload.get(k) != b.workload.get(k)]
    return "; ".join(f"{k} {a.workload.get(k)} against {b.workload.get(k)}" for k in moved) or None


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:9] if len(text) >= 40 else text
