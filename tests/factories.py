"""Made-up records with chosen speeds and noise: what is derived from them can be checked against what was put in."""

import dataclasses
import random
from typing import Any

from results.schema import SCHEMA_VERSION, Check, Measurement, Parity, Record, Step, Trial

# name, title, speed over the rung before, drift bound, share of the memory before
GPU_LADDER = [
    ("tf32", "TF32 matmuls", 2.15, 5e-3, 1.0),
    ("bf16", "bf16 autocast", 1.72, 3e-2, 0.72),
    ("compile", "torch.compile", 1.55, 3e-2, 0.83),
    ("flash", "FlashAttention", 1.62, 3e-2, 0.61),
    ("padded_vocab", "padded vocabulary", 1.004, 3e-2, 1.0),
    ("fused_adamw", "fused AdamW", 1.06, 3e-2, 1.0),
    ("max_autotune", "max-autotune", 0.97, 3e-2, 1.01),
]
CPU_LADDER = [
    ("tf32", "TF32 matmuls", None, 5e-3, 1.0),
    ("flash", "fused attention (SDPA)", 1.66, 1e-3, 0.7),
    ("padded_vocab", "padded vocabulary", 1.002, 1e-3, 1.0),
    ("fused_adamw", "fused AdamW", 1.08, 1e-3, 1.0),
    ("compile", "torch.compile", 1.10, 1e-3, 0.9),
    ("bf16", "bf16 autocast", 0.50, 3e-2, 0.8),
]
# label, title, rung that gives its place, how much slower than everything without that
CHOICES = [
    ("no attention", "with no attention rung", "flash", 1.0),
    ("efficient_attention", "with memory-efficient attention", "flash", 0.75),
    ("triton_mlp", "with MLP kernels", None, 0.98),
]
DEVICES: dict[str, dict[str, Any]] = {
    "h100": {
        "device": {"slug": "h100-sxm", "name": "NVIDIA H100 80GB HBM3", "kind": "cuda", "memory_bytes": 85_000_000_000,
                   "capability": [9, 0], "count": 1},
        "workload": {"model": "gpt2", "vocab_size": 50257, "micro_batch": 64, "seq_len": 1024, "grad_accumulation": 1,
                     "world_size": 1},
        "ladder": GPU_LADDER, "baseline_ms": 1650.0, "memory": 61e9, "roofline": 740_000.0, "peak": 989.0,
    },
    "laptop": {
        "device": {"slug": "rtx-3070-laptop", "name": "NVIDIA GeForce RTX 3070 Laptop GPU", "kind": "cuda",
                   "memory_bytes": 8_300_000_000, "capability": [8, 6], "count": 1},
        "workload": {"model": "gpt2", "vocab_size": 50257, "micro_batch": 2, "seq_len": 1024, "grad_accumulation": 1,
                     "world_size": 1},
        "ladder": [(n, t, None if n == "max_autotune" else 1 + (s - 1) * 0.55, d, m) for n, t, s, d, m in GPU_LADDER],
        "baseline_ms": 330.0, "memory": 5.9e9, "roofline": 33_000.0, "peak": 33.2,
    },
    "cpu": {
        "device": {"slug": "cpu-xeon-2c", "name": "Intel Xeon (2 cores)", "kind": "cpu", "memory_bytes": 8_000_000_000,
                   "capability": None, "count": 1},
        "workload": {"model": "nano", "vocab_size": 8192, "micro_batch": 2, "seq_len": 1024, "grad_accumulation": 1,
                     "world_size": 1},
        "ladder": CPU_LADDER, "baseline_ms": 1907.0, "memory": 1.6e9, "roofline": 3900.0, "peak": 0.25,
    },
}  # fmt: skip


def make_trial(
    step_ms: float, rng: random.Random, *, index: int = 0, noise: float = 0.01, blocks: int = 20, **changes: Any
) -> Trial:
    """One process whose level is off by ``noise`` (standard deviation, relative) and whose blocks scatter by 0.5 %."""
    level = step_ms * rng.gauss(1.0, noise)
    device_ms = [level * (1.0 + abs(rng.gauss(0.0, 0.005))) for _ in range(blocks)]
    values: dict[str, Any] = dict(
        index=index, position=0, steps_per_block=1, device_ms=device_ms, wall_ms=[ms * 1.002 for ms in device_ms],
        setup_ms=900.0, first_step_ms=4 * level, warmup_steps=8, warmup_settled=True, total_ms=30e3,
        peak_memory_bytes=10**9, peak_reserved_bytes=None,
        telemetry={"sm_clock_mhz": 1755.0, "power_w": 640.0, "temperature_c": 61.0},
    )  # fmt: skip
    return Trial(**(values | changes))


def make_measurement(name: str, trials: list[Trial], workload: dict[str, Any], **changes: Any) -> Measurement:
    """A setting that passed parity, unless told otherwise."""
    parity = Parity(
        steps=5, loss=[9.1] * 5, reference_loss=[9.1] * 5, loss_drift=2.3e-3, loss_bound=3e-2, gradient_drift=1e-3,
        gradient_bound=1e-1, norm_drift=1e-3, norm_bound=1e-1, passed=True,
    )  # fmt: skip
    rungs = [] if name.startswith("baseline") else name.split("+")
    values: dict[str, Any] = dict(
        id=name, rungs=rungs, workload=workload, precision="bf16" if "bf16" in rungs else "fp32", quantised=False,
        status="ok", reason=None, first_steps_ms=[42100.0 if "compile" in rungs else 900.0, *[100.0] * 9], parity=parity, trials=trials,
    )  # fmt: skip
    return Measurement(**(values | changes))


def make_record(
    device: str = "h100",
    *,
    trials: int = 5,
    noise: float = 0.01,
    seed: int = 0,
    derivations: tuple[str, ...] = ("cumulative", "single", "leave-one-out", "choices"),
    statuses: dict[str, tuple[str, str]] | None = None,
    processes: tuple[int, ...] = (),
    **changes: Any,
) -> Record:
    """A whole session.

    Args:
        device: a key of `DEVICES`.
        trials: processes per setting; one makes the record a quick one.
        noise: standard deviation of a process's level, relative.
        seed: draws the noise.
        derivations: which ladders it has.
        statuses: rung -> (status, reason) for the first cumulative setting with it; such a setting has no trials.
        processes: world sizes of the scaling ladder.
        **changes: fields of the record to put in place of the made-up ones.
    """
    spec, rng = DEVICES[device], random.Random(seed)
    workload, cuda = spec["workload"], spec["device"]["kind"] == "cuda"
    available = [rung for rung in spec["ladder"] if rung[2] is not None]
    measurements: dict[str, Measurement] = {}

    def measure(names: list[str], name: str | None = None, **extra: Any) -> str:
        name = name or "+".join(names) or "baseline"
        if name in measurements:
            return name
        chosen = [rung for rung in available if rung[0] in names]
        step_ms, memory = spec["baseline_ms"], spec["memory"]
        for _, _, speed, _, share in chosen:
            step_ms, memory = step_ms / speed, memory * share
        step_ms *= extra.pop("slowdown", 1.0)
        made = [
            make_trial(
                step_ms, rng, index=i, noise=noise, peak_memory_bytes=int(memory),
                peak_reserved_bytes=int(memory * 1.08) if cuda else None,
            )
            for i in range(trials)
        ]  # fmt: skip
        status, reason = (statuses or {}).get(names[-1] if names else "", ("ok", None))
        made = made if status == "ok" else []
        measurements[name] = make_measurement(
            name, made, extra.pop("workload", workload), rungs=names, status=status, reason=reason, **extra
        )
        return name

    measure([])
    measure([], "baseline-again")
    titles = {rung[0]: rung[1] for rung in spec["ladder"]}
    skipped = {
        rung[0]: "needs a newer GPU" if cuda else "needs an NVIDIA GPU" for rung in spec["ladder"] if rung[2] is None
    }
    on = [rung[0] for rung in available]
    made: dict[str, list[Step]] = {}
    if "cumulative" in derivations:
        steps, previous, names = (
            [Step(label="baseline", title="fp32 baseline", measurement="baseline", previous=None)],
            "baseline",
            [],
        )
        for rung in titles:
            if rung in skipped:
                steps.append(
                    Step(label=rung, title=titles[rung], measurement=None, previous=None, skipped=skipped[rung])
                )
                continue
            names = [*names, rung]
            steps.append(Step(label=rung, title=titles[rung], measurement=measure(names), previous=previous))
            previous = "+".join(names)
        made["cumulative"] = steps
    if "single" in derivations:
        made["single"] = [Step(label="baseline", title="fp32 baseline", measurement="baseline", previous=None)]
        made["single"] += [Step(label=r, title=titles[r], measurement=measure([r]), previous="baseline") for r in on]
    if "leave-one-out" in derivations:
        everything = measure(on)
        made["leave-one-out"] = [Step(label="all", title="all rungs", measurement=everything, previous=None)]
        for rung in on:
            rest = measure([r for r in on if r != rung])
            made["leave-one-out"].append(
                Step(label=rung, title=f"without {titles[rung]}", measurement=rest, previous=everything)
            )
    if "choices" in derivations:
        everything = measure(on)
        made["choices"] = [Step(label="all", title="all rungs", measurement=everything, previous=None)]
        for label, title, out, slowdown in CHOICES:
            rest = [rung for rung in on if rung != out]
            name = measure(rest if label.startswith("no ") else [*rest, label], slowdown=slowdown)
            made["choices"].append(Step(label=label, title=title, measurement=name, previous=everything))
        made["choices"].append(Step(label="fp16", title="with fp16", measurement=None, previous=None, skipped="has bf16"))
    if processes:
        made["scaling"] = []
        for count in processes:
            name = measure(
                on, f"ddp-{count}", workload=workload | {"world_size": count}, slowdown=1 + 0.025 * (count - 1) ** 0.7
            )
            made["scaling"].append(
                Step(
                    label=str(count),
                    title=f"{count} process{'es' if count > 1 else ''}",
                    measurement=name,
                    previous=None,
                )
            )

    values: dict[str, Any] = dict(
        schema_version=SCHEMA_VERSION, custom=False, suite="ladder", status="complete", quick=trials == 1,
        created_utc="2026-01-31T12:34:56Z", profile=device, device=spec["device"],
        environment={
            "commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False, "harness_sha256": "ab" * 32,
            "torch": "2.13.0", "triton": "3.7.1" if cuda else None, "cuda": "13.0" if cuda else None,
            "driver": "580.65" if cuda else None, "python": "3.12.3",
        },
        workload=workload, seed=seed,
        token_source={"corpus": "stdlib", "tokenizer": "gpt2", "num_tokens": 3_000_000, "sha256": "cd" * 32},
        num_parameters=124_439_808, flops_per_token={"full": 855.2e6, "causal": 798.5e6, "counted": 797.0e6},
        peaks={"datasheet": {}, "measured": {}},
        mfu_peak={"dtype": "bf16", "tflops": spec["peak"], "source": "datasheet"} if cuda else None,
        roofline={"tokens_per_second": spec["roofline"], "dtype": "bf16", "components_ms": {"block_gemms": 41.9}},
        harness={
            "num_trials": trials, "num_blocks": 20, "time_limit_s": 600.0, "blocks_in_turn": False,
            "seconds_total": 900.0, "seconds_in_blocks": 400.0,
        },
        derivations=made, measurements=measurements,
    )  # fmt: skip
    return dataclasses.replace(Record(**values), **changes)


# name, title, speed over the rung before, gigabytes that a token needs, milliseconds to the first token
SAMPLING_LADDER = [
    ("kv_cache", "KV cache", 20.0, 0.53, 450.0),
    ("static_cache", "static KV cache", 1.003, 0.53, 450.0),
    ("compile", "torch.compile (+ CUDA graph)", 1.4, 0.53, 450.0),
    ("bf16", "bf16 weights and cache", 0.9, 0.27, 210.0),
    ("int8", "int8 weights", 2.1, 0.14, 220.0),
]


def make_sampling_record(
    device: str = "cpu",
    *,
    trials: int = 4,
    noise: float = 0.01,
    seed: int = 0,
    batches: tuple[int, ...] = (1, 4, 16),
    statuses: dict[str, tuple[str, str]] | None = None,
    **changes: Any,
) -> Record:
    """A session of writing: arguments as for `make_record`; ``batches`` are of the ladder by sequences at once."""
    rng, workload = random.Random(seed), {"model": "gpt2", "vocab_size": 50257, "batch": 1, "context": 512}
    measurements: dict[str, Measurement] = {}

    def measure(name: str, rungs: list[str], step_ms: float, gigabytes: float, first_ms: float, batch: int = 1) -> None:
        status, reason = (statuses or {}).get(name, ("ok", None))
        made = [
            make_trial(step_ms, rng, index=i, noise=noise, first_token_ms=[first_ms * rng.gauss(1, 0.01) for _ in range(3)])
            for i in range(trials if status == "ok" else 0)
        ]
        exact = "bf16" not in rungs
        checks = [
            Check(what="logits", value=1e-6 if exact else 9e-3, bound=1e-4 if exact else 5e-2),
            Check(what="tokens", value=0.0 if exact else 0.06, bound=0.0 if exact else 1.0),
        ]
        measurements[name] = make_measurement(
            name, made, workload | {"batch": batch}, rungs=rungs, parity=None, checks=checks, status=status, reason=reason,
            work={"tokens": float(batch), "bytes": gigabytes * 1e9}, precision="fp32" if exact else "bf16",
            quantised="int8" in rungs,
        )  # fmt: skip

    measure("baseline", [], 800.0, 0.5, 460.0)
    measure("baseline-again", [], 800.0, 0.5, 460.0)
    steps = [Step(label="baseline", title="fp32, no cache", measurement="baseline", previous=None)]
    rungs, step_ms, gigabytes, first_ms = [], 800.0, 0.5, 460.0
    for label, title, speed, gigabytes, first_ms in SAMPLING_LADDER:
        before, rungs = "+".join(rungs) or "baseline", [*rungs, label]
        step_ms /= speed
        measure("+".join(rungs), rungs, step_ms, gigabytes, first_ms)
        steps.append(Step(label=label, title=title, measurement="+".join(rungs), previous=before))
    made, alone = {"cumulative": steps}, "+".join(rungs)
    if batches:
        made["batch"] = []
        for batch in batches:
            name = alone if batch == 1 else f"{alone}@{batch}"
            if batch > 1:
                measure(name, rungs, step_ms * batch**0.4, gigabytes, first_ms * batch, batch)
            title = f"{batch} sequence{'s' if batch > 1 else ''}"
            made["batch"].append(Step(label=str(batch), title=title, measurement=name, previous=alone if batch > 1 else None))
    values: dict[str, Any] = dict(
        suite="sampling", workload=workload, derivations=made, measurements=measurements, quick=trials == 1, mfu_peak=None,
        roofline=None, flops_per_token={}, peaks={"datasheet": None, "measured": {"tflops": {"fp32": 0.2}, "bandwidth_gbps": 40.0}},
    )  # fmt: skip
    return dataclasses.replace(make_record(device, derivations=()), **(values | changes))
