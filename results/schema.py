"""What a record holds: one benchmark session on one device, raw times and provenance included.

A record is written once and never changed, so it keeps what was observed and nothing that can be worked out from it:
medians, intervals, speed-ups, MFU and "best" are derived on reading (`results.analysis`), by one function each.

    Record
      ├─ device, environment, token_source, seed      where it was measured, by which code, on which text
      ├─ workload, flops, peaks, roofline             what was computed and what the device could do at best
      ├─ measurements: id -> Measurement              every distinct setting once: status, parity, raw trials
      └─ derivations: name -> [Step, …]               how the settings line up as ladders, skipped rungs included

This file needs the standard library alone; nothing under `results` imports torch.
"""

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass, field

SCHEMA_VERSION = 1

# What can become of a setting. "ok" alone carries times that are compared.
STATUSES = ("ok", "wrong", "oom", "crashed", "hung", "not run")


class RecordError(ValueError):
    """A file that is not a record this version can read; the message names what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One process's steady state for one setting. Every time is milliseconds per step, one entry per block.

    A step is what the suite times: an optimizer step of the ladder, one token for every sequence of sampling, one call of a
    kernel (whose wall time is the longer of the device's and of what the host takes to enqueue it).
    """

    index: int  # which trial, from 0
    position: int  # place in that trial's visiting order, from 0
    steps_per_block: int
    device_ms: list[float]  # CUDA events on a GPU; equal to wall_ms on a CPU
    wall_ms: list[float]
    setup_ms: float  # model, optimizer and batches made
    first_step_ms: float  # this process's first step; compiled code comes from the session's disk cache
    warmup_steps: int
    warmup_settled: bool
    total_ms: float  # the whole process, start to result
    peak_memory_bytes: int  # allocated on a GPU; resident set on a CPU
    peak_reserved_bytes: int | None  # None where there is no caching allocator
    telemetry: dict[str, float] = field(default_factory=dict)  # medians under load: sm_clock_mhz, power_w, temperature_c
    flags: list[str] = field(default_factory=list)  # e.g. "thermal slowdown in 2 blocks, kept after 4 tries"
    first_token_ms: list[float] = field(default_factory=list)  # of sampling: prompt in, first token out; one entry per repeat


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A setting's first steps against the same steps in true fp32, on the same real batches from the same seed."""

    steps: int
    loss: list[float]  # nats, one per step
    reference_loss: list[float]
    loss_drift: float  # largest |loss - reference|, nats
    loss_bound: float
    gradient_drift: float  # largest relative error of a parameter's gradient at step 0, by sketch
    gradient_bound: float
    norm_drift: float  # largest relative error of the whole gradient's norm
    norm_bound: float
    passed: bool
    reason: str | None = None  # which bound was broken and by how much


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number that must not exceed a bound for a setting to be right."""

    what: str  # e.g. "logits", "tokens"
    value: float
    bound: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One distinct setting: what it was, what became of it, its trials."""

    id: str  # "baseline", "baseline-again", or the rungs joined by "+"; of kernels, the problem and the implementation
    rungs: list[str]  # of kernels, the one implementation
    workload: dict[str, typing.Any]
    precision: str  # "fp32", "tf32", "bf16", "fp16", …: what the matrix products compute in
    quantised: bool
    status: str
    reason: str | None
    first_steps_ms: list[float]  # wall time of the parity run's steps: the session's first of this setting, compiling included
    parity: Parity | None
    trials: list[Trial]
    flags: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)  # of suites that check by other numbers than parity's
    work: dict[str, float] = field(default_factory=dict)  # one step's: "tokens", "bytes" moved at least, "flops"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One place on a derived ladder."""

    label: str  # the rung switched on here (off, for leave-one-out; put in another's place, for choices), or "baseline"
    title: str  # chart label
    measurement: str | None  # id; None where the rung was skipped
    previous: str | None  # id of the measurement that this step is set against beside the baseline
    skipped: str | None = None  # why the rung cannot run here


@dataclass(frozen=True, kw_only=True)
class Record:
    """One benchmark session. See the module's drawing."""

    schema_version: int
    suite: str  # "ladder", "sampling", "kernels": a key of bench.suites.SUITES
    status: str  # "complete" or "partial"
    quick: bool
    created_utc: str  # 2026-01-31T12:34:56Z
    profile: str
    device: dict[str, typing.Any]  # slug, name, kind, memory_bytes, capability, count
    environment: dict[str, typing.Any]  # commit, dirty, harness_sha256, torch, triton, cuda, driver, python, …
    workload: dict[str, typing.Any]  # of the ladder: model, vocab_size, micro_batch, seq_len, grad_accumulation, world_size
    seed: int
    token_source: dict[str, typing.Any]  # corpus, tokenizer, num_tokens, sha256
    num_parameters: int
    flops_per_token: dict[str, float]  # "full" (6N + 12LHQT), "causal" (attention halved), "counted" (FlopCounterMode)
    peaks: dict[str, typing.Any]  # "datasheet" and "measured": tflops by dtype, bandwidth_gbps, source
    mfu_peak: dict[str, typing.Any] | None  # dtype, tflops, source: what MFU is divided by; None prints no MFU
    roofline: dict[str, typing.Any] | None  # tokens_per_second, dtype, components_ms: fastest this device could be
    harness: dict[str, typing.Any]  # num_trials, num_blocks, blocks_in_turn, seconds_total, seconds_in_blocks, …
    derivations: dict[str, list[Step]]
    measurements: dict[str, Measurement]
    custom: bool = False  # the workload or the rungs were not the profile's own


def to_dict(value: object) -> dict[str, typing.Any]:
    """A record, or a part of one, as plain JSON types."""
    return dataclasses.asdict(value)  # type: ignore[call-overload]


def from_dict(cls: type, data: object, where: str = "record") -> typing.Any:
    """Builds a schema class from parsed JSON, checking every field's presence and type.

    Args:
        cls: one of the classes above.
        data: parsed JSON.
        where: dotted place, for messages.

    Raises:
        RecordError: a field is missing, unknown, of the wrong type, or not finite.
    """
    if not isinstance(data, dict):
        raise RecordError(f"{where} is {type(data).__name__}, not an object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise RecordError(f"{where} has unknown field {unknown[0]!r}")
    values = {}
    for name, spec in fields.items():
        if name in data:
            values[name] = _check(hints[name], data[name], f"{where}.{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise RecordError(f"{where} lacks field {name!r}")
    return cls(**values)


def _check(hint: typing.Any, value: typing.Any, where: str) -> typing.Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _check(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise RecordError(f"{where} is {type(value).__name__}, not a list")
        return [_check(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{where} is {type(value).__name__}, not an object")
        return {key: _check(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # also true for NaN
            raise RecordError(f"{where} is {str(value)[:30]}, not a finite number")
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecordError(f"{where} is {value!r}, not {hint.__name__}")
    return value
