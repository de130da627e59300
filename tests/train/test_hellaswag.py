"""HellaSwag in a run: asked in its turn, by all processes together, and leaving no trace in what is trained."""

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from data import hellaswag as file
from data.hellaswag import read
from evals import endings
from evals.hellaswag import SCORINGS, context_limit, evaluate, questions
from stepladder.loading import load_model
from tests.evals.items import WORDS, made_items, write_items
from tests.train import tiny

CHANGES = {
    "data.tokenizer": "bytes", "train.steps": 10, "train.micro_batch": 2, "hellaswag.every": 5, "hellaswag.items": 8,
    "checkpoints.every": 5, "validation.every": 0, "samples.every": 0,
}  # fmt: skip


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with items where HellaSwag's are, and a text beside it."""
    path = file.place(tmp_path / "corpora")
    path.parent.mkdir(parents=True)
    write_items(path, made_items(12))
    monkeypatch.setattr(file, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    (tmp_path / "page.txt").write_text(f"{' '.join(WORDS)}.\n" * 30)
    return tmp_path / "corpora"


def asked(run_dir: Path) -> dict[tuple[int, str], dict]:
    """(step, scoring) -> row; every one once."""
    rows = tiny.rows(run_dir, "hellaswag")
    found = {(row["step"], row["scoring"]): row for row in rows}
    assert len(found) == len(rows), "a step was asked twice"
    return found


def test_what_a_run_writes_down_is_what_its_checkpoints_answer(tmp_path: Path, corpora: Path) -> None:
    tiny.run(tmp_path, "run", CHANGES)
    is_what_the_checkpoints_answer(tmp_path / "run", corpora)


def is_what_the_checkpoints_answer(run_dir: Path, corpora: Path) -> None:
    found = asked(run_dir)
    assert list(found) == [(5, "plain"), (5, "lm-eval"), (10, "plain"), (10, "lm-eval")]
    for (step, scoring), row in found.items():
        loaded = load_model("gpt2", run_dir / "checkpoints" / f"step-{step:08d}")
        ready = questions(read(file.place(corpora))[:8], loaded.tokenizer, scoring=scoring, limit=context_limit(loaded.model.config))
        score = evaluate(loaded.model, ready, target=torch.device("cpu"), batch_tokens=512)
        assert {key: row[key] for key in score.to_dict()} == score.to_dict() and row["items"] == 8


def test_two_processes_write_down_what_their_checkpoints_answer(tmp_path: Path, corpora: Path) -> None:
    """Under torchrun, over gloo: every question is asked by one of them; the first writes down what all have found."""
    script = tmp_path / "with_our_items.py"
    script.write_text(
        f"import sys\nimport data.hellaswag\nfrom stepladder.cli import main\n"
        f"data.hellaswag.SHA256 = {file.SHA256!r}\nsys.exit(main())\n"
    )
    changes = {**CHANGES, "train.micro_batch": 1}
    words = tiny.command(tmp_path, "--run-dir", str(tmp_path / "run"), processes=2)
    words += [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    at = words.index("stepladder")
    done = subprocess.run(
        [*words[: at - 1], str(script), *words[at + 1 :]],
        cwd=tiny.ROOT, env=tiny.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny.rows(tmp_path / "run", "start")[0]["world_size"] == 2
    is_what_the_checkpoints_answer(tmp_path / "run", corpora)


def test_asking_changes_nothing_of_what_is_trained(tmp_path: Path, corpora: Path) -> None:
    tiny.run(tmp_path, "with", {**CHANGES, "model.dropout": 0.1})
    tiny.run(tmp_path, "without", {**CHANGES, "model.dropout": 0.1, "hellaswag.every": 0})
    assert tiny.losses(tmp_path / "with") == tiny.losses(tmp_path / "without")
    assert asked(tmp_path / "without") == {}


def test_told_to_stop_meanwhile_it_asks_again_when_resumed(tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.run(tmp_path, "whole", CHANGES)
    real = endings.losses

    def interrupted(*arguments: object):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(endings, "losses", interrupted)
    outcome = tiny.run(tmp_path, "run", CHANGES)
    assert (outcome.reason, outcome.step) == ("SIGTERM", 5) and asked(tmp_path / "run") == {}
    monkeypatch.setattr(endings, "losses", real)
    tiny.run(tmp_path, "run", CHANGES, resume=True)
    assert asked(tmp_path / "run") == asked(tmp_path / "whole")


def test_it_is_said_at_the_start_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "URL", "http://127.0.0.1:9/hellaswag_val.jsonl")  # nobody listens there
    monkeypatch.setattr("data.download.WAITS_S", ())
    with pytest.raises(OSError, match="put it at .*raw/hellaswag/hellaswag_val.jsonl"):
        tiny.run(tmp_path, "run", CHANGES)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tokenizer_that_lacks_a_character_is_said_at_the_start(tmp_path: Path, corpora: Path) -> None:
    (tmp_path / "page.txt").write_text("abcdefghij\n" * 50)
    with pytest.raises(ValueError, match="tokenizer 'char' has no id for the character"):
        tiny.run(tmp_path, "run", {**CHANGES, "data.tokenizer": "char"})


@pytest.mark.parametrize("scoring", SCORINGS)
def test_both_scorings_can_be_read_back(tmp_path: Path, corpora: Path, scoring: str) -> None:
    from results.runs import load_run

    tiny.run(tmp_path, "run", CHANGES)
    found = load_run(tmp_path / "run").hellaswag[scoring]
    assert list(found) == [5, 10] and found[10].items == 8 and 0 <= found[10].low <= found[10].acc_norm <= found[10].high <= 1
