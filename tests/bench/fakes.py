"""Workers that answer at once, and text that needs no preparing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.launch import Outcome
from data.tokens import TokenSource

TRAJECTORY = {
    "loss": [5.0 - 0.1 * i for i in range(10)],
    "norm": [2.0] * 10,
    "sketches": {"wte.weight": [1.0, -2.0, 3.0]},
    "step_ms": [900.0, *[100.0] * 9],
}


def tokens(vocab_size: int = 8192, length: int = 50_000) -> TokenSource:
    stream = np.random.default_rng(0).integers(vocab_size, size=length).astype(np.uint16)
    return TokenSource(tokens=stream, info={"corpus": "random numbers", "tokenizer": "none", "num_tokens": length})


def trial(job: dict, step_ms: float) -> dict:
    return {
        "index": job["trial"],
        "position": job["position"],
        "steps_per_block": 1,
        "device_ms": [step_ms] * job["num_blocks"],
        "wall_ms": [step_ms] * job["num_blocks"],
        "setup_ms": 1000.0,
        "first_step_ms": 150.0,
        "warmup_steps": 10,
        "warmup_settled": True,
        "total_ms": 3000.0,
        "peak_memory_bytes": 2**28,
        "peak_reserved_bytes": None,
        "telemetry": {},
        "flags": [],
    }


@dataclass
class FakeLauncher:
    """Answers every job like a healthy worker, unless `faults` has another answer for it.

    Args:
        workdir: scratch.
        step_ms: per rung tuple; 100 where it is missing.
        faults: (name, job) -> an Outcome, or None for a healthy answer.
    """

    workdir: Path
    step_ms: dict[tuple[str, ...], float] = field(default_factory=dict)
    faults: Callable[[str, dict], Outcome | None] = lambda name, job: None
    jobs: list[tuple[str, dict, int]] = field(default_factory=list)
    visits: list[str] = field(default_factory=list)
    closed: bool = False

    def start(self, name: str, job: dict, *, world_size: int = 1, turns: bool = False) -> "FakeWorker":
        self.jobs.append((name, job, world_size))
        return FakeWorker(self, name, job["num_blocks"] if turns else 0, self._answer(name, job))

    def close(self) -> None:
        self.closed = True

    def _answer(self, name: str, job: dict) -> Outcome:
        if fault := self.faults(name, job):
            return fault
        if job["kind"] == "peaks":
            return Outcome(status="ok", result={"tflops": {"fp32": 0.2}, "bandwidth_gbps": 40.0, "method": "pretended"})
        if job["kind"] == "parity":
            return Outcome(status="ok", result={"trajectory": TRAJECTORY, "peak_memory_bytes": 2**28})
        step_ms = self.step_ms.get(tuple(job["settings"]["rungs"]), 100.0) * (1 + 0.001 * job["trial"])
        return Outcome(status="ok", result=trial(job, step_ms))


class FakeWorker:
    """Waits for as many turns as it has blocks, unless it has failed by then."""

    def __init__(self, launcher: FakeLauncher, name: str, blocks: int, answer: Outcome) -> None:
        self.launcher, self.name, self.answer = launcher, name, answer
        self.left = blocks if answer.status == "ok" else 0
        self.waiting = False
        self.outcome: Outcome | None = None

    def advance(self) -> bool:
        if self.waiting:
            self.launcher.visits.append(self.name)
            self.left -= 1
        self.waiting = self.left > 0
        if not self.waiting:
            self.outcome = self.answer
        return self.waiting


class Silent:
    """A reporter that keeps what it is told, and can press Ctrl-C."""

    def __init__(self, interrupt_at: str | None = None) -> None:
        self.lines: list[str] = []
        self.steps = 0
        self.interrupt_at = interrupt_at

    def begin(self, steps: int) -> None:
        self.steps = steps

    def working(self, what: str) -> None:
        if what == self.interrupt_at:
            raise KeyboardInterrupt

    def done(self, what: str, outcome: str) -> None:
        self.lines.append(f"{what}: {outcome}")
