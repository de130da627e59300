"""Pad the vocabulary to a multiple of 128 rows.

The output head is the largest matrix product of a small GPT-2, and GPT-2's 50257 is odd: rows of logits start at addresses
that are not aligned for wide loads, and tiles do not divide. With 50304 = 393 · 128 rows they do, for 0.1 % more work.

The loss must stay the loss: the 47 extra columns are cut off before the softmax, so they get no probability and no gradient,
and the count of useful FLOPs does not include them.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from hardware import Device
from model import GPT2Config
from optim_ladder.rung import REORDERED, Rung

if TYPE_CHECKING:
    from optim_ladder.settings import Workload

MULTIPLE = 128


def unavailable(device: Device, workload: "Workload") -> str | None:
    if not workload.is_transformer:
        return f"the model {workload.model} has no output head"
    if workload.vocab_size % MULTIPLE == 0:
        return f"the vocabulary of {workload.vocab_size} is already a multiple of {MULTIPLE}"
    return None


def pad(config: GPT2Config) -> GPT2Config:
    return replace(config, padded_vocab_size=-(-config.vocab_size // MULTIPLE) * MULTIPLE)


RUNG = Rung(
    name="padded_vocab",
    title="padded vocabulary",
    source="https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html",
    essay=__doc__,
    drift=REORDERED,
    unavailable=unavailable,
    model_config=pad,
)
