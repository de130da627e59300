"""Runs whose model is in bfloat16: their checkpoints are exact, go on bit by bit, and are anybody's to go on with."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from data import hellaswag as file
from hardware import detect
from optim_ladder import Settings, TrainStep, Workload, build
from stepladder.cli import main
from tests.evals.items import WORDS, made_items, write_items
from tests.train import tiny
from tests.train.test_kills import finish
from tests.train.test_state import batch, copied, losses
from train import checkpoint
from train.state import check_matches, pack, template, unpack
from train.watch import Watch

CPU = detect("cpu")
WORKLOAD = Workload(model="pico", vocab_size=67, micro_batch=2, seq_len=16)
RUNGS = ("padded_vocab", "fused_adamw", "bf16_weights")
OTHERS = [(), ("bf16", "fused_adamw"), ("padded_vocab",)]
CHANGES = {"train.rungs": ["fused_adamw", "bf16_weights"], "train.steps": 12, "validation.every": 4, "samples.every": 6}


def of(*rungs: str, seed: int = 7) -> TrainStep:
    return build(Settings(workload=WORKLOAD, rungs=rungs), CPU, seed=seed)


def test_training_goes_on_bit_by_bit() -> None:
    with of(*RUNGS) as step, of(*RUNGS, seed=99) as other:
        losses(step, range(3))
        kept = copied(pack(step))
        expected = losses(step, range(3, 9))
        losses(other, range(40, 42))  # another past, to be forgotten
        unpack(other, kept)
        assert losses(other, range(3, 9)) == expected
        after, before = pack(other), pack(step)
    for part in ("model", "optimizer"):
        assert all(torch.equal(after[part][name], tensor) for name, tensor in before[part].items())


def test_what_is_kept_are_the_exact_weights() -> None:
    with of(*RUNGS) as step:
        losses(step, range(3))
        packed, expected = pack(step), template(step)
        for part in ("model", "optimizer"):
            shapes = {n: (t.shape, t.dtype) for n, t in packed[part].items()}
            assert shapes == {n: (t.shape, t.dtype) for n, t in expected[part].items()}
            assert {dtype for _, dtype in shapes.values()} == {torch.float32}
        for name, parameter in step.model.named_parameters():
            kept = packed["model"][name]
            assert torch.equal(kept.bfloat16(), parameter[: len(kept)])
        assert any(not torch.equal(t, t.bfloat16().float()) for t in packed["model"].values())
        check_matches(step, packed)


def test_before_the_first_step_there_are_masters_and_no_moments() -> None:
    with of(*RUNGS) as step, of(seed=99) as plain:
        unpack(plain, copied(pack(step)))
        with of() as fresh:
            for p, q in zip(plain.model.parameters(), fresh.model.parameters(), strict=True):
                assert torch.equal(p, q)


@pytest.mark.parametrize("others", OTHERS, ids=lambda rungs: "+".join(rungs) or "fp32")
@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_run_goes_on_with_other_rungs(first: str, others: tuple[str, ...]) -> None:
    """And what it goes on from is the very state that was left."""
    before, after = (others, RUNGS) if first == "theirs" else (RUNGS, others)
    with of(*before) as step, of(*after, seed=99) as other:
        losses(step, range(3))
        kept = copied(pack(step))
        unpack(other, kept)
        taken = pack(other)
        for part in ("model", "optimizer"):
            assert all(torch.equal(taken[part][name], tensor) for name, tensor in kept[part].items())
        assert losses(other, range(3, 6)) == pytest.approx(losses(step, range(3, 6)), abs=1e-2)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With validation, samples, dropout and gradients of several micro-batches."""
    changes = {**CHANGES, "train.micro_batch": 2, "model.dropout": 0.1}
    tiny.run(tmp_path, "whole", changes)
    real = Watch.step

    def step_and_signal(self: Watch, **row: Any) -> None:
        real(self, **row)
        if row["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Watch, "step", step_and_signal)
    assert tiny.run(tmp_path, "run", changes).reason == "SIGTERM"
    monkeypatch.undo()
    assert tiny.run(tmp_path, "run", changes, resume=True).reason == "finished"
    assert tiny.losses(tmp_path / "run") == tiny.losses(tmp_path / "whole")
    assert tiny.weights(tmp_path / "run", 12) == tiny.weights(tmp_path / "whole", 12)
    for kind in ("val", "sample"):
        rows = [tiny.rows(tmp_path / name, kind) for name in ("run", "whole")]
        for one, other in zip(*rows, strict=True):
            assert {**one, "tokens_per_second": 0} == {**other, "tokens_per_second": 0}


def test_a_run_asks_hellaswag_and_its_checkpoint_is_for_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    items = file.place(tmp_path / "corpora")
    items.parent.mkdir(parents=True)
    write_items(items, made_items(8))
    monkeypatch.setattr(file, "SHA256", hashlib.sha256(items.read_bytes()).hexdigest())
    (tmp_path / "page.txt").write_text(f"{' '.join(WORDS)}.\n" * 30 + tiny.TEXT)
    tiny.run(tmp_path, "run", {**CHANGES, "data.tokenizer": "bytes", "hellaswag.every": 12, "hellaswag.items": 8})
    scores = {row["scoring"]: row for row in tiny.rows(tmp_path / "run", "hellaswag")}
    assert scores.keys() == {"plain", "lm-eval"} and all(row["items"] == 8 for row in scores.values())

    there = ["gpt2", "--ckpt", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["sample", *there, "--prompt", "1 little", "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out.startswith("1 little")
    for rungs in ([], ["--rungs", "bf16_weights"]):
        common = ["--corpora", str(tmp_path / "corpora"), *rungs]
        assert main(["eval", "loss", *there, "--data", str(tmp_path / "page.txt"), *common]) == 0
        out = capsys.readouterr().out
        assert ("bf16_weights" in out) == bool(rungs)
        found = float(out.split("loss, nats per token")[1].split()[0])
        assert found == pytest.approx(tiny.rows(tmp_path / "run", "val")[-1]["loss"], abs=2e-2)
        assert main(["eval", "hellaswag", *there, "--data", str(items), *rungs]) == 0, capsys.readouterr().err
        capsys.readouterr()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Their gradients are averaged in bfloat16, their masters stay alike; recomputing and dropout change nothing."""
    changes = {**CHANGES, "train.micro_batch": 1, "checkpoints.every": 12, "model.dropout": 0.1}
    tiny.run(tmp_path, "one", changes)  # 4 accumulated
    changes["train.rungs"] = [*changes["train.rungs"], "checkpointing"]
    flags = [part for key, value in changes.items() for part in ("--set", f"{key}={value}".replace("'", '"'))]
    output = finish(tiny.start(tiny.command(tmp_path, "--run-dir", str(tmp_path / "two"), *flags, processes=2)))
    one, two = tiny.losses(tmp_path / "one"), tiny.losses(tmp_path / "two")
    assert one.keys() == two.keys(), output
    assert list(two.values()) == pytest.approx(list(one.values()), abs=1e-2)
    folders = [tmp_path / name / "checkpoints" / "step-00000012" for name in ("one", "two")]
    weights = [checkpoint.load(folder).tensors["model"] for folder in folders]
    for name, tensor in weights[0].items():
        assert tensor.dtype == torch.float32 and (tensor - weights[1][name]).norm() < 0.05
