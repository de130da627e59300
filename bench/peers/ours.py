"""Our own trainer as one more entrant: `stepladder train` on the same tokens, timed by its own metrics.jsonl."""

import json
import os
from pathlib import Path

from bench.launch import ROOT
from bench.peers.entrant import NEVER, Entrant, Task
from hardware import source_hash
from hardware.environment import HARNESS_PACKAGES, git_state
from results.runs import METRICS, parse

RECIPE = """\
[data]
corpus = "./tokens"
tokenizer = "gpt2"

[model]
name = {model}
dropout = 0.0

[train]
steps = {steps}
seq_len = {seq_len}
tokens_per_step = {tokens_per_step}
micro_batch = {micro_batch}
rungs = {rungs}

[validation]
every = 0

[samples]
every = 0

[checkpoints]
every = {never}
"""


def entrant(task: Task, rungs: tuple[str, ...]) -> Entrant:
    """Our trainer for a task.

    Args:
        task: what to train.
        rungs: names from the ladder, every one of which can run on the device.
    """
    w = task.workload
    recipe = RECIPE.format(
        model=json.dumps(w.model),
        steps=task.most_steps,
        seq_len=w.seq_len,
        tokens_per_step=w.tokens_per_step,
        micro_batch=w.micro_batch,
        rungs=json.dumps(list(rungs)),
        never=NEVER,
    )

    def prepare(folder: Path) -> None:
        (folder / "recipe.toml").write_text(recipe)
        (folder / "tokens").mkdir()
        task.tokens.astype("<u2").tofile(folder / "tokens" / "train.bin")

    options = ["--recipe", "recipe.toml", "--run-dir", "run", "--corpora", "corpora", "--device", task.device.kind]
    return Entrant(
        title="Stepladder",
        source="this repository",
        arguments=["-m", "stepladder", "train", *options],
        prepare=prepare,
        step_ms=step_ms,
        log=f"run/{METRICS}",
        environment={"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        **git_state(ROOT),
        files_sha256={"sources": source_hash(ROOT, (*HARNESS_PACKAGES, "train", "evals"))},
    )


def step_ms(line: str) -> float | None:
    """Milliseconds of the step that a row is about, None if it is about none."""
    row = parse(line.encode())
    return float(row["step_ms"]) if row is not None and row["kind"] == "step" else None
