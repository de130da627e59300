"""A worker and a ladder with planted rungs, to see that the harness finds what it must and invents nothing.

`python -m tests.bench.planted JOB` is `python -m bench.worker JOB` with these rungs on the ladder as well.
"""

import ctypes
import sys
import time
from collections.abc import Callable

import torch

import optim_ladder.ladder
from hardware import Device
from model import GPT2
from optim_ladder import Rung, TrainStep
from optim_ladder.rung import REORDERED

SLOWDOWN = 0.05


def planted(name: str, **hooks) -> Rung:
    return Rung(name=name, title=name, source="https://example.invalid", essay=name, drift=REORDERED, **hooks)


def on_gradient(parameter: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    """A convert hook that alters one parameter's gradient; "*" alters all."""

    def convert(model: GPT2) -> GPT2:
        for name, p in model.named_parameters():
            if parameter in (name, "*"):
                p.register_hook(change)
        return model

    return convert


def leak_the_future(model: GPT2) -> GPT2:
    """Attention that sees one token ahead: the loss falls suspiciously well."""
    for block in model.h:
        attention = block.attn
        attention.register_forward_pre_hook(lambda module, inputs: (0.5 * (inputs[0] + inputs[0].roll(-1, 1)),))
    return model


WRONG = {
    "one_bias_flipped": on_gradient("h.0.ln_1.bias", lambda g: -g),
    "one_norm_forgotten": on_gradient("ln_f.weight", torch.zeros_like),
    "positions_doubled": on_gradient("wpe.weight", lambda g: 2 * g),
    "all_one_percent_off": on_gradient("*", lambda g: 1.01 * g),
    "one_row_lost": on_gradient("h.2.mlp.c_fc.weight", lambda g: torch.cat([torch.zeros_like(g[:64]), g[64:]])),
    "future_leaked": leak_the_future,
}


def crash(device: Device):
    raise RuntimeError("planted crash\nwith a second line")


def hang(device: Device):
    time.sleep(600)


def die(device: Device):
    ctypes.string_at(0)  # a segmentation fault: no Python exception, no answer


def out_of_memory(model: GPT2) -> GPT2:
    """Too much for a micro-batch above 1, as a small GPU would find."""

    def refuse(module, inputs):
        if inputs[0].shape[0] > 1:
            raise torch.OutOfMemoryError("planted: tried to allocate 1 TiB")

    model.register_forward_pre_hook(refuse)
    return model


PLANTED = (
    planted("nothing_at_all"),
    planted("slowdown"),
    planted("crash", process=crash),
    planted("hang", process=hang),
    planted("die", process=die),
    planted("out_of_memory", convert=out_of_memory),
    *(planted(name, convert=convert) for name, convert in WRONG.items()),
)


def plant() -> None:
    """Puts the planted rungs on this process's ladder for good, and makes `slowdown` cost 5 % of a step."""
    optim_ladder.ladder.LADDER = (*optim_ladder.ladder.LADDER, *PLANTED)
    honest = TrainStep.__call__

    def slowed(self: TrainStep, batches):
        start = time.perf_counter()
        result = honest(self, batches)
        if "slowdown" in self.settings.rungs:
            until = start + (time.perf_counter() - start) * (1 + SLOWDOWN)
            while time.perf_counter() < until:
                pass
        return result

    TrainStep.__call__ = slowed


if __name__ == "__main__":
    plant()
    from bench.worker import main

    sys.exit(main())
