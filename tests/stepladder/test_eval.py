"""`stepladder eval` as a user meets it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evals import endings
from model import GPT2
from stepladder.cli import main
from tests.evals.items import make_item, made_items, write_items
from tests.stepladder.trained import BPE
from tests.train import tiny

ROOT = Path(__file__).resolve().parents[2]


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = main(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def figure(out: str, name: str) -> float:
    """The number in a line of a table."""
    return float(re.search(rf"{name}\s+([\d.,]+)", out)[1].replace(",", ""))


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write_items(tmp_path / "items.jsonl", made_items(12))


# ------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("name", ["bytes", "bigram"])
def test_the_loss_is_the_one_that_the_run_has_measured(capsys, trained_once: Path, name: str) -> None:
    kind = "char-bigram" if name == "bigram" else "gpt2"
    checkpoint = trained_once / name / "checkpoints" / "step-00000010"
    code, out, err = run(capsys, "loss", kind, "--ckpt", checkpoint, "--tokens", 256, "--corpora", trained_once / "corpora")
    assert code == 0 and err == ""
    measured = next(row for row in tiny.rows(trained_once / name, "val") if row["step"] == 10)
    assert figure(out, "loss, nats per token") == pytest.approx(measured["loss"], abs=1e-4)
    assert "256 of" in out and "sequences of 16 tokens, fp32" in out


def test_bytes_are_those_of_the_text(capsys, trained_once: Path) -> None:
    """Whatever the tokenizer: the validation split is the last tenth of the file."""
    found = {}
    for name in ("bytes", "bpe"):
        code, out, err = run(capsys, "loss", "gpt2", "--ckpt", trained_once / name, "--corpora", trained_once / "corpora")
        assert code == 0 and err == "", "what was prepared for training is used again"
        found[name] = figure(out, "bytes of text")
        nats, tokens, bits = (figure(out, what) for what in ("loss, nats per token", "tokens", "bits per byte"))
        assert bits == pytest.approx(nats * tokens / 0.693147 / found[name], rel=1e-3)
    size = (trained_once / "page.txt").stat().st_size
    assert found["bpe"] == size - size * 9 // 10
    assert found["bytes"] == found["bpe"] + 1, "the newline after the document counts as a byte"
    _, out, _ = run(capsys, "loss", "gpt2", "--ckpt", trained_once / "bpe", "--corpora", trained_once / "corpora", "--split", "train")
    assert figure(out, "bytes of text") == size * 9 // 10 and "on page, train" in out


def test_another_text_is_prepared_with_the_models_own_tokenizer_once(capsys, trained_once: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("a man and a woman talk about food. naïve é\n" * 50)
    arguments = ("loss", "gpt2", "--ckpt", trained_once / "bpe", "--data", tmp_path / "book.txt", "--corpora", tmp_path / "corpora")
    code, first, err = run(capsys, *arguments, "--split", "train")
    assert code == 0 and "book train: tokenizing" in err and BPE in first
    code, again, err = run(capsys, *arguments, "--split", "train")
    assert code == 0 and again == first and err == ""
    (folder,) = (tmp_path / "corpora" / "book").iterdir()
    code, out, _ = run(capsys, "loss", "gpt2", "--ckpt", trained_once / "bpe", "--data", folder, "--split", "train")
    assert code == 0 and out == first, "a prepared folder can be named too"
    code, _, err = run(capsys, "loss", "gpt2", "--ckpt", trained_once / "bytes", "--data", folder)
    assert code == 2 and err.count("\n") == 1
    assert f"{folder} was prepared with the tokenizer {BPE!r}" in err and "pico was trained with 'bytes'" in err


def test_another_dataset_that_is_damaged_is_in_nobodys_way(capsys, trained: Path) -> None:
    """Only the model's own matters; that one is made again."""
    folders = {p.parent.name.split("-")[0]: p.parent for p in (trained / "corpora" / "page").glob("*/dataset.json")}
    arguments = ("loss", "gpt2", "--ckpt", trained / "bpe", "--data", trained / "page.txt")
    arguments += ("--corpora", trained / "corpora")
    _, whole, _ = run(capsys, *arguments)
    (folders["bytes"] / "train_000000.bin").unlink()
    code, out, err = run(capsys, *arguments)
    assert (code, out, err) == (0, whole, "")
    (folders["bpe"] / "val_000000.bin").write_bytes(b"")
    code, out, _ = run(capsys, *arguments)
    assert (code, out) == (0, whole)


@pytest.mark.parametrize(
    ("what", "remedy"), [("loss", "lower --micro-batch or --seq-len"), ("hellaswag", "lower --batch-tokens")]
)
def test_a_lack_of_memory_is_one_line(
    capsys, monkeypatch, trained_once: Path, items: Path, what: str, remedy: str
) -> None:
    import torch

    def too_large(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")

    monkeypatch.setattr(GPT2, "forward", too_large)
    monkeypatch.setattr(endings, "losses", too_large)
    more = ("--data", items) if what == "hellaswag" else ("--corpora", trained_once / "corpora")
    code, out, err = run(capsys, what, "gpt2", "--ckpt", trained_once / "bytes", *more)
    assert (code, out, err) == (2, "", f"error: out of memory; {remedy}\n")


def test_rungs_compute_nearly_the_same(capsys, trained_once: Path) -> None:
    arguments = ("loss", "gpt2", "--ckpt", trained_once / "bpe", "--corpora", trained_once / "corpora", "--device", "cpu")
    losses = {}
    for rungs in ("", "bf16,flash,padded_vocab"):
        code, out, _ = run(capsys, *arguments, "--rungs", rungs)
        assert code == 0 and (rungs.replace(",", "+") or "fp32") in out
        losses[rungs] = figure(out, "loss, nats per token")
    exact, quick = losses.values()
    assert quick == pytest.approx(exact, abs=0.02)


# -------------------------------------------------------------------------------------------- hellaswag


def test_both_scorings_are_shown_with_intervals_beside_what_was_published(capsys, trained_once: Path, items: Path) -> None:
    code, out, err = run(capsys, "hellaswag", "gpt2", "--ckpt", trained_once / "bytes", "--data", items)
    assert code == 0 and err == ""
    assert "pico, step 10 on HellaSwag, 12 items" in out and out.count("this model") == 2
    for published in ("0.2859", "0.2955", "0.2892", "0.3114", "0.3752", "0.4320", "0.4893", "0.5089"):
        assert published in out
    assert re.search(r"plain +this model +0\.\d{4} +0\.\d{3}–0\.\d{3} +0\.\d{4} +0\.\d{3}–0\.\d{3}", out)
    assert "items/s" in out
    code, out, _ = run(capsys, "hellaswag", "gpt2", "--ckpt", trained_once / "bytes", "--data", items, "--items", 5, "--scoring", "lm-eval")
    assert code == 0 and "HellaSwag, 5 items" in out and out.count("this model") == 1 and "plain  " not in out


def test_the_figures_are_those_of_the_items(capsys, trained_once: Path, tmp_path: Path) -> None:
    """Of four endings alike the first is taken: label 0 is right, the others are wrong."""
    alike = [make_item("a man", *["runs"] * 4, label=label) for label in (0, 0, 0, 1, 2)]
    path = write_items(tmp_path / "alike.jsonl", alike)
    _, out, _ = run(capsys, "hellaswag", "char-bigram", "--ckpt", trained_once / "bigram", "--data", path, "--scoring", "plain")
    assert re.search(r"this model +0\.6000 +0\.231–0\.882 +0\.6000 +0\.231–0\.882", out)
    assert "cut from the left" not in out


def test_a_context_too_long_for_the_model_is_cut_and_said_to_be(capsys, trained_once: Path, tmp_path: Path) -> None:
    path = write_items(tmp_path / "long.jsonl", [make_item("the man " * 3, "a", "b", "c", "d"), *[make_item("a man", *"abcd")] * 2])
    code, out, _ = run(capsys, "hellaswag", "gpt2", "--ckpt", trained_once / "bytes", "--data", path, "--scoring", "plain")
    assert code == 0
    assert "1 items have a context longer than the model's 16 positions: cut from the left." in out


def test_two_processes_find_what_one_finds(trained_once: Path, items: Path) -> None:
    """Under torchrun, over gloo."""
    what = ["-m", "stepladder", "eval", "hellaswag", "gpt2", "--ckpt", str(trained_once / "bytes"), "--data", str(items), "--device", "cpu"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    tables = []
    for start in ([], two):
        done = subprocess.run(
            [sys.executable, *start, *what, "--batch-tokens", "600"],
            cwd=ROOT, env=tiny.environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        tables.append(re.sub(r"[\d.,]+ items/s", "", done.stdout))
    assert tables[0] == tables[1] and "0." in tables[0]


# -------------------------------------------------------------------------------------- leaving, mistakes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_ends_it_between_two_batches(capsys, monkeypatch, trained_once: Path, items: Path, number: int, code: int) -> None:
    real, calls = endings.losses, []

    def interrupted(*arguments: object):
        calls.append(1)
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(endings, "losses", interrupted)
    found, out, err = run(capsys, "hellaswag", "gpt2", "--ckpt", trained_once / "bytes", "--data", items)
    assert (found, out, len(calls)) == (code, "", 1)
    assert err == f"stopped by {signal.Signals(number).name}: there is no result\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("loss", "gpt2"), "gpt2 needs its weights: add --ckpt runs/NAME"),
        (("loss", "gpt2", "--ckpt", "{0}/absent"), "no checkpoint '{0}/absent'"),
        (("hellaswag", "char-bigram", "--ckpt", "{0}/bytes"), "holds a pico, no char-bigram; use: gpt2 --ckpt"),
        (("loss", "gpt", "--ckpt", "{0}/bytes"), "unknown model 'gpt': did you mean 'gpt2'?"),
        (("loss", "gpt2", "--ckpt", "{0}/bytes", "--split", "test"), "split is 'test'; it must be 'train' or 'val'"),
        (("loss", "gpt2", "--ckpt", "{0}/bytes", "--data", "absent.txt"), "no corpus and no file 'absent.txt'"),
        (("loss", "gpt2", "--ckpt", "{0}/bytes", "--seq-len", "2000"), "--seq-len is 2000, above the 16 positions of pico; lower it"),
        (("loss", "gpt2", "--ckpt", "{0}/bytes", "--rungs", "tf33"), "unknown rung 'tf33': did you mean 'tf32'?"),
        (("loss", "gpt2", "--ckpt", "{0}/bytes", "--rungs", "ddp"), "rung 'ddp' cannot run on"),
        (("loss", "gpt2", "--ckpt", "{0}/bytes", "--tokens", "-1"), "Invalid value for '--tokens'"),
        (("hellaswag", "gpt2", "--ckpt", "{0}/bytes", "--data", "{1}", "--rungs", "compile"), "rung 'compile' cannot run here"),
        (("hellaswag", "gpt2", "--ckpt", "{0}/bytes", "--data", "{1}", "--rungs", "max_autotune"), "rung 'max_autotune' cannot run here"),
        (("hellaswag", "gpt2", "--ckpt", "{0}/bytes", "--scoring", "fancy"), "unknown scoring 'fancy': choose from plain, lm-eval, both"),
        (("hellaswag", "gpt2", "--ckpt", "{0}/bytes", "--data", "{0}/page.txt"), "page.txt: line 1 is damaged: it is not a whole line of JSON"),
        (("hellaswag", "gpt2", "--ckpt", "{0}/bytes", "--data", "absent.jsonl"), "absent.jsonl: No such file or directory; give a file like"),
        (("hellaswagg", "gpt2"), "unknown command 'hellaswagg': did you mean 'hellaswag'? choose from hellaswag, loss"),
        (("loss", "gpt2", "--ckpt", "{0}/bytes", "--micro-batch", str(2**70)), "Invalid value for '--micro-batch'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(capsys, trained_once: Path, items: Path, tmp_path: Path, arguments, message: str) -> None:
    words = [word.format(trained_once, items) for word in arguments]
    words += ["--corpora", str(tmp_path / "corpora")] if "gpt2" in words and words[0] != "hellaswagg" else []
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and message.format(trained_once, items) in err, err


def test_a_text_that_a_model_does_not_name_is_asked_for(capsys, trained_once: Path, tmp_path: Path) -> None:
    """A converted folder says nothing of what it was trained on."""
    assert main(["convert", str(trained_once / "bytes"), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    code, _, err = run(capsys, "loss", "gpt2", "--ckpt", tmp_path / "out")
    assert code == 2 and f"{tmp_path / 'out'} does not say what it was trained on: name a text with --data" in err
    text = ("--data", trained_once / "page.txt", "--corpora", trained_once / "corpora", "--tokens", 200)
    code, out, _ = run(capsys, "loss", "gpt2-pretrained", "--ckpt", tmp_path / "out", *text, "--seq-len", 16)
    _, expected, _ = run(capsys, "loss", "gpt2", "--ckpt", trained_once / "bytes", *text)
    assert code == 0 and figure(out, "loss, nats per token") == pytest.approx(figure(expected, "loss, nats per token"), abs=1e-4)


def test_without_a_network_hellaswag_says_where_to_put_it(capsys, trained_once: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.hellaswag.URL", "http://127.0.0.1:9/hellaswag_val.jsonl")  # nobody listens there
    monkeypatch.setattr("data.download.WAITS_S", ())
    code, _, err = run(capsys, "hellaswag", "gpt2", "--ckpt", trained_once / "bytes", "--corpora", tmp_path)
    assert code == 2 and err.count("\n") == 1
    assert "cannot download http://127.0.0.1:9/hellaswag_val.jsonl" in err
    assert f"put it at {tmp_path}/raw/hellaswag/hellaswag_val.jsonl" in err


def test_importing_the_command_imports_no_library() -> None:
    code = "import sys, stepladder.eval; sys.exit(bool({'torch', 'tiktoken', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
