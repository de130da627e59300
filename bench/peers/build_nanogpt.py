"""build-nanogpt: no command line at all, so sizes are replaced in the program; its own compile switch is turned on.

With that switch on it neither asks HellaSwag nor writes text. What it imports for them would need packages and a
download, so an empty module stands in.
"""

import re
from pathlib import Path

import numpy as np

from bench.peers.entrant import Peer, Task

DATA = "edu_fineweb10B"  # where it looks for shards


def edits(task: Task) -> dict[str, str]:
    w, config = task.workload, task.workload.model_config()
    shape = f"block_size={config.n_positions}, n_layer={config.n_layer}, n_head={config.n_head}, n_embd={config.n_embd}"
    return {
        r"^B = \d+": f"B = {w.micro_batch}",
        r"^T = \d+": f"T = {w.seq_len}",
        r"^total_batch_size = \d+": f"total_batch_size = {w.tokens_per_step}",
        r"^max_steps = \d+": f"max_steps = {task.most_steps}",
        r"^use_compile = False": "use_compile = True",
        r"(?<=GPTConfig\()vocab_size=50304(?=\))": f"vocab_size=50304, {shape}",
    }


def write_tokens(folder: Path, tokens: np.ndarray) -> None:
    (folder / DATA).mkdir()
    for split in ("train", "val"):  # it validates before its first step
        np.save(folder / DATA / f"tokens_{split}_000000.npy", tokens.astype(np.uint16))


PEER = Peer(
    title="build-nanogpt",
    source="https://github.com/karpathy/build-nanogpt",
    files=("train_gpt2.py",),
    step_line=re.compile(r"^step +\d+ \|.* dt: (\d+\.\d+)ms\b"),
    arguments=lambda task: [],
    write_tokens=write_tokens,
    edits=edits,
    stand_ins={"hellaswag.py": "render_example = iterate_examples = None\n"},
    notes=("vocabulary padded to 50,304, all of it in the softmax",),
    on_a_processor="bf16",
)
