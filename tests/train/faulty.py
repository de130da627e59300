"""`python -m tests.train.faulty RANK STEP WHAT train …`: the command line with a number that turns NaN on one process.

WHAT is loss or gradient.
"""

import os
import sys

import torch

from optim_ladder import TrainStep
from stepladder.cli import main

rank, at, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
taken = 0
forward = TrainStep.forward


def broken_forward(self: TrainStep, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    global taken
    loss = forward(self, idx, targets)
    if torch.is_grad_enabled():
        taken += 1
        if taken == at and int(os.environ.get("RANK", 0)) == rank:
            if what == "loss":
                return loss * float("nan")
            loss.register_hook(lambda gradient: gradient * float("inf"))
    return loss


TrainStep.forward = broken_forward
sys.exit(main(sys.argv[4:]))
