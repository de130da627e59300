"""nanoGPT: all on the command line. It compiles by itself, pads the vocabulary, and takes fused AdamW on a GPU."""

import re
from pathlib import Path

import numpy as np

from bench.peers.entrant import NEVER, Peer, Task


def arguments(task: Task) -> list[str]:
    w, config = task.workload, task.workload.model_config()
    # Its context for a processor computes in fp32 whatever dtype says; float16 would make it scale gradients.
    half = "bfloat16" if task.device.supports("bf16") else "float16"
    given = {
        "device": task.device.kind,
        "dtype": half if task.device.kind == "cuda" else "float32",
        "compile": True,
        "dataset": "tokens",
        "batch_size": w.micro_batch,
        "block_size": w.seq_len,
        "gradient_accumulation_steps": 1,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "bias": True,  # as GPT-2 has; its default leaves them out
        "dropout": 0.0,
        "max_iters": task.most_steps,
        "log_interval": 1,
        "eval_interval": NEVER,  # it evaluates before its first step all the same,
        "eval_iters": 0,  # on no batches
    }
    return [f"--{key}={value}" for key, value in given.items()]


def write_tokens(folder: Path, tokens: np.ndarray) -> None:
    place = folder / "data" / "tokens"
    place.mkdir(parents=True)
    tokens.astype("<u2").tofile(place / "train.bin")


PEER = Peer(
    title="nanoGPT",
    source="https://github.com/karpathy/nanoGPT",
    files=("train.py", "model.py", "configurator.py"),
    step_line=re.compile(r"^iter \d+:.* time (\d+\.\d+)ms\b"),
    arguments=arguments,
    write_tokens=write_tokens,
    notes=("vocabulary padded to 50,304, all of it in the softmax; exact GELU",),
)
