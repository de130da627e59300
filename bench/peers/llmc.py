"""llm.c's trainer in PyTorch: bf16 autocast, flash attention, and the compiler's coordinate descent, by its switches."""

import re
from pathlib import Path

import numpy as np

from bench.peers.entrant import Peer, Task
from data.foreign import LLMC_HEADER_BYTES, LLMC_MAGIC, LLMC_VERSION

TOKENS = "tokens_train.bin"
# What it calls the sizes that it knows, with weights drawn at random.
NAMES = {"gpt2": "d12", "gpt2-medium": "d24", "gpt2-large": "d36", "gpt2-xl": "d48"}


def arguments(task: Task) -> list[str]:
    w, cuda = task.workload, task.device.kind == "cuda"
    given = {
        "device": task.device.kind,
        "dtype": "bfloat16" if cuda else "float32",  # it autocasts on a GPU alone
        "compile": 1,
        "flash": 1,
        "tensorcores": 1,
        "model": NAMES.get(w.model, "d12"),
        "batch_size": w.micro_batch,
        "sequence_length": w.seq_len,
        "total_batch_size": w.tokens_per_step,
        "num_iterations": task.most_steps,
        "overfit_single_batch": 0,
        "weight_decay": 0.1,
        "write_tensors": 0,
        "input_bin": TOKENS,
    }
    return [f"--{key}={value}" for key, value in given.items()]


def edits(task: Task) -> dict[str, str]:
    """Other sizes take the place of its smallest."""
    w = task.workload
    if w.model in NAMES:
        return {}
    config = w.model_config()
    sizes = {"block_size": config.n_positions, "vocab_size": config.vocab_size}
    sizes |= {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    pattern = ", ".join(rf"{name}=\d+" for name in sizes)
    return {rf'(?<="d12": GPTConfig\(){pattern}': ", ".join(f"{name}={size}" for name, size in sizes.items())}


def write_tokens(folder: Path, tokens: np.ndarray) -> None:
    header = np.zeros(LLMC_HEADER_BYTES // 4, dtype="<i4")
    header[:3] = LLMC_MAGIC, LLMC_VERSION, len(tokens)
    (folder / TOKENS).write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


PEER = Peer(
    title="llm.c (PyTorch)",
    source="https://github.com/karpathy/llm.c",
    files=("train_gpt2.py",),
    step_line=re.compile(r"^step +\d+/\d+ \|.*\((\d+\.\d+) ms\b"),
    arguments=arguments,
    write_tokens=write_tokens,
    edits=edits,
)
