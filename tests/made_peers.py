"""Made-up comparisons, and programs that print what a peer prints: as fast as told, or failing in a way that was planted."""

import random
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.entrant import Entrant, Task
from bench.peers.known import PEERS
from hardware import Device
from optim_ladder import Settings, Workload
from results.peers import OURS, Comparison, Run
from results.peers import Entrant as Result
from tests.factories import make_record
from tests.optim_ladder.devices import CPU

WORKLOAD = Workload(model="nano", vocab_size=50257, micro_batch=2, seq_len=16, dropout=0.0)
SETTINGS = Settings(workload=WORKLOAD, rungs=("flash", "fused_adamw"))
TOKENS = np.random.default_rng(0).integers(50257, size=5000).astype(np.uint16)

# What each peer prints at a step.
LINES = {
    "nanogpt": "iter {i}: loss 10.9, time {ms:.2f}ms, mfu -100.00%",
    "build-nanogpt": "step {i:5d} | loss: 10.900000 | lr 8.3916e-07 | norm: 15.2 | dt: {ms:.2f}ms | tok/sec: 1.00",
    "llm.c": "step {i:4d}/140 | train loss 10.900000 | norm 15.2000 | lr 1.00e-04 | ({ms:.2f} ms | 1 tok/s)",
}


def task(device: Device, num_steps: int = 5) -> Task:
    return Task(device=device, workload=WORKLOAD, num_steps=num_steps, tokens=TOKENS)


def program(body: str) -> list[str]:
    """Arguments of Python that run some lines; ``wait()`` does nothing until it is killed."""
    return ["-c", f"import os, signal, sys\nwait = signal.pause\n{textwrap.dedent(body)}"]


def entrant(body: str, **changes: Any) -> Entrant:
    """A program of which every line that is a number is a step's milliseconds."""

    def step_ms(line: str) -> float | None:
        try:
            return float(line)
        except ValueError:
            return None

    values = {"title": "a peer", "source": "nowhere", "arguments": program(body), "prepare": lambda folder: None, "step_ms": step_ms}
    return Entrant(**(values | changes))


def steady(ms: float | Sequence[float], folder: Path | None = None) -> Entrant:
    """Says that its first step took 9 s and every other one so long, a value for each trial; then waits.

    Args:
        ms: of a step; several are of one trial each.
        folder: where trials are counted; not needed for one value.
    """
    if isinstance(ms, (int, float)):
        return entrant(f"print(9000.0)\nfor i in range(60): print({ms})\nsys.stdout.flush()\nwait()")
    body = f"""
        from pathlib import Path
        count = Path({str(folder)!r}) / "count"
        trial = len(count.read_text()) if count.exists() else 0
        count.write_text("x" * (trial + 1))
        print(9000.0)
        for i in range(60): print({list(ms)!r}[trial])
        sys.stdout.flush()
        wait()
    """
    return entrant(body)


def checkout(folder: Path, name: str, ms: float = 10.0, last_words: str = "") -> Path:
    """A folder that passes for a peer's checkout: the constants that are replaced, and a program that prints its lines.

    Args:
        ms: of a step, as it prints it.
        last_words: code to run instead of printing.
    """
    folder.mkdir(parents=True)
    options = re.findall(r"--(\w+)=", " ".join(PEERS[name].arguments(task(CPU))))
    run = last_words or f'for i in range(60): print({LINES[name]!r}.format(i=i, ms={ms}))\nsys.stdout.flush()\nsignal.pause()'
    constants = {
        "nanogpt": "".join(f"{option} = None\n" for option in options),
        "build-nanogpt": "import hellaswag\nGPTConfig = dict\nB = 64 # a\nT = 1024\ntotal_batch_size = 524288 # b\nmax_steps = 19073\n"
        "model = dict(GPTConfig(vocab_size=50304))\nuse_compile = False # c\n",
        "llm.c": 'GPTConfig = dict\nmodels = {\n    "d12": GPTConfig(block_size=1024, vocab_size=50257, n_layer=12, n_head=12, n_embd=768),\n}\n'
        f"options = {[f'--{option}' for option in options]}\n".replace("'", '"'),
    }[name]  # fmt: skip
    files = {"nanogpt": ["train.py", "model.py", "configurator.py"]}.get(name, ["train_gpt2.py"])
    for file in files[1:]:
        (folder / file).write_text("")
    (folder / files[0]).write_text(f"import json, os, signal, sys\n{constants}{run}\n")
    git = folder / ".git" / "refs" / "heads"
    git.mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/master\n")
    (git / "master").write_text("ab" * 20 + "\n")
    return folder


def make_comparison(
    speeds: dict[str, float] | None = None, *, trials: int = 4, noise: float = 0.01, seed: int = 0, failed: Sequence[str] = (), **changes: Any
) -> Comparison:
    """A comparison on an H100 that never was.

    Args:
        speeds: name -> how many times as long a step takes as ours, 100 ms.
        trials, noise, seed: as for `tests.factories.make_record`.
        failed: names of those that ran out of memory.
        **changes: fields to put in place of the made-up ones.
    """
    rng, like = random.Random(seed), make_record("h100", derivations=())
    speeds = {OURS: 1.0, **(speeds or {"nanogpt": 1.5, "build-nanogpt": 1.4, "llm.c": 1.3})}

    def run(trial: int, ms: float) -> Run:
        level = ms * rng.gauss(1.0, noise)
        return Run(
            index=trial, position=0, first_step_ms=40e3, warmup_steps=10, warmup_settled=True, step_ms=[level] * 10,
            wall_step_ms=level * 1.002, total_ms=60e3,
        )  # fmt: skip

    entrants = {
        name: Result(
            title="Stepladder" if name == OURS else name, source="this repository" if name == OURS else f"https://example.org/{name}",
            commit="cd" * 20, files_sha256={}, command=["train.py"], changes=[], notes=["exact GELU"] if name == "nanogpt" else [],
            status="oom" if name in failed else "ok", reason="trial 1: needed 90 GiB" if name in failed else None,
            runs=[] if name in failed else [run(trial, 100.0 * factor) for trial in range(trials)],
        )
        for name, factor in speeds.items()
    }  # fmt: skip
    values: dict[str, Any] = dict(
        schema_version=like.schema_version, status="complete", created_utc=like.created_utc, device=like.device,
        environment=like.environment, workload=like.workload, rungs=["bf16", "compile", "flash"], precision="bf16", seed=0,
        token_source=like.token_source, harness={"num_trials": trials, "num_steps": 10}, entrants=entrants,
    )  # fmt: skip
    return Comparison(**(values | changes))
