"""Measured is trained: what the loop does around a step is next to nothing beside the step that the benchmark times."""

import time
from pathlib import Path

import pytest

from optim_ladder import TrainStep
from tests.train import tiny
from train.feed import Feed
from train.loop import Loop

CHANGES = {
    "model.name": "nano", "train.seq_len": 512, "train.tokens_per_step": 1024, "train.micro_batch": 2, "train.steps": 24,
    "validation.every": 0, "samples.every": 0, "checkpoints.every": 100,
}  # fmt: skip


def test_a_step_is_nearly_all_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches from the feed, losses read and checked, rows written: under 1 % beside forward, backward and update."""
    seconds: dict[str, list[float]] = {}

    def timed(cls: type, name: str) -> None:
        real = getattr(cls, name)

        def measured(*args, **kwargs):
            begun = time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                seconds.setdefault(name, []).append(time.perf_counter() - begun)

        monkeypatch.setattr(cls, name, measured)

    for cls, name in ((Feed, "__next__"), (Loop, "_take"), (TrainStep, "backward"), (TrainStep, "update")):
        timed(cls, name)
    tiny.run(tmp_path, changes=CHANGES)
    total = {name: sum(values[4:]) for name, values in seconds.items()}
    step = total["backward"] + total["update"]
    around = total["_take"] - step + total["__next__"]
    print(f"\naround a step: {around / step:.2%} of it, of which waiting for batches {total['__next__'] / step:.2%}")
    assert around < 0.01 * step
