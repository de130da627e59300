"""`stepladder peers` as a user meets it; the programs print lines and train nothing."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench.peers.ours
import data.bpe
import data.gpt2
import data.tokens
import stepladder.peers
from hardware import Device, detect
from results import peers as store
from results import store as records_store
from stepladder.cli import main
from tests.bench.fakes import tokens
from tests.factories import make_record
from tests.made_peers import checkout, entrant, steady

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ["--device", "cpu", "--model", "pico", "--micro-batch", "2", "--seq-len", "16", "--rungs", "flash", "--steps", "5", "--trials", "2"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Three checkouts, ours at 10 ms a step, text and encoding at hand."""
    place = SimpleNamespace(
        results=tmp_path / "results", ours=steady(10.0), tasks=[],
        checkouts={name: checkout(tmp_path / name, name, ms) for name, ms in (("nanogpt", 15.0), ("build-nanogpt", 14.0), ("llm.c", 9.0))},
    )  # fmt: skip

    def ours(task, rungs):
        place.tasks.append((task, rungs))
        return place.ours

    monkeypatch.setattr(bench.peers.ours, "entrant", ours)
    monkeypatch.setattr(data.tokens, "load_tokens", lambda vocab_size, *, corpora, progress: tokens(vocab_size))
    monkeypatch.setattr(data.gpt2, "gpt2_at_hand", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    place.arguments = ["peers", *(f"{name}={path}" for name, path in place.checkouts.items()), *SMALL, "--results-dir", str(place.results)]
    return place


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), captured.err


def saved(here: SimpleNamespace) -> store.Comparison:
    found, problems = store.load_all(here.results / "peers", detect("cpu").slug)
    assert len(found) == 1 and not problems
    return found[0][1]


def test_everything_is_measured_shown_kept_and_drawn(capsys, here) -> None:
    code, out, err = run(capsys, *here.arguments)
    assert code == 0 and not err
    for words in ("pico, B=2, T=16, V=50257; ours with flash", "1.50× ± 0.0 %", "1.40× ± 0.0 %", "0.90× ± 0.0 %", "comparison: ", "charts: "):
        assert words in out, words
    comparison = saved(here)
    assert comparison.rungs == ["flash"] and comparison.workload["model"] == "pico" and comparison.status == "complete"
    assert [row.name for row in store.rows(comparison)] == ["ours", "llm.c", "build-nanogpt", "nanogpt"]
    assert comparison.environment["torch"] and comparison.token_source["corpus"] == "random numbers"
    assert (here.results / "charts" / comparison.device["slug"] / "peers.png").exists()
    chart = here.results / "charts" / comparison.device["slug"] / "peers.png"
    chart.unlink()
    code, out, _ = run(capsys, "plot", "--results-dir", str(here.results))
    assert code == 0 and "peers.png" in out and chart.exists()
    text = next((here.results / "peers").rglob("*.json")).read_text()
    assert str(here.results.parent) not in text  # nothing of this machine's disk


def test_a_peer_that_fails_is_a_row(capsys, here) -> None:
    program = here.checkouts["llm.c"] / "train_gpt2.py"
    program.write_text(program.read_text().replace("for i in range(60)", "raise ImportError('No module named tqdm')\nfor i in range(60)"))
    code, out, err = run(capsys, *here.arguments)
    assert code == 0 and "Traceback" not in out + err
    assert "crashed: trial 1: ImportError: No module named tqdm" in out and "1.50×" in out
    assert saved(here).entrants["llm.c"].status == "crashed"


def test_when_nothing_can_be_compared_nothing_is_kept(capsys, here) -> None:
    here.ours = entrant("sys.exit('error: no text')")
    code, out, _ = run(capsys, *here.arguments)
    assert code == 1 and "error: no text" in out and "nothing could be compared" in out
    assert not list(here.results.rglob("*.json"))


def test_a_termination_keeps_what_was_measured(capsys, here, monkeypatch) -> None:
    """The signal comes while the second trial of nanoGPT runs, which gives no more times by then."""
    program = here.checkouts["nanogpt"] / "train.py"
    mark = here.results.parent / "mark"
    stopper = f"import pathlib\nif pathlib.Path({str(mark)!r}).exists(): os.kill({os.getpid()}, signal.SIGTERM); signal.pause()\n"
    program.write_text(program.read_text().replace("for i in range(60)", f"{stopper}pathlib.Path({str(mark)!r}).touch()\nfor i in range(60)", 1))
    before, num_threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    code, out, _ = run(capsys, *here.arguments)
    assert code == 130 and "comparison: " in out and "partial: cut short" in out
    assert saved(here).status == "partial" and len(saved(here).entrants["nanogpt"].runs) == 1
    assert signal.getsignal(signal.SIGTERM) is before and threading.active_count() <= num_threads


def test_best_takes_what_measured_best_on_this_device(capsys, here, monkeypatch, tmp_path) -> None:
    arguments = [a for a in here.arguments if a not in ("--rungs", "flash")] + ["--best"]
    monkeypatch.setattr(stepladder.peers, "RECORDS", tmp_path / "records")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "--best needs a record" in err
    record = make_record("cpu")
    device = {**record.device, "slug": detect("cpu").slug}
    records_store.write(type(record)(**{**vars(record), "device": device}), tmp_path / "records")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "best on" in out
    assert "flash" in saved(here).rungs and "bf16" not in saved(here).rungs  # which loses there


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["nanogpt"], "error: 'nanogpt' does not say where a peer is"),
        (["nonogpt=."], "error: unknown peer 'nonogpt': did you mean 'nanogpt'?"),
        (["nanogpt=/nowhere"], "error: nanogpt=/nowhere: there is no such folder"),
        (["llm.c=tests"], "error: tests is not llm.c (PyTorch): it has no train_gpt2.py; give a checkout of https://github.com"),
        (["nanogpt=.", "--best", "--rungs", "flash"], "error: --best and --rungs both say"),
        (["nanogpt=.", "--rungs", "flsh"], "error: unknown rung 'flsh'"),
        (["nanogpt=.", "--rungs", "tf32", "--device", "cpu"], "error: rung 'tf32' cannot run on"),
        (["nanogpt=.", "--device", "tpu"], "error: kind is 'tpu'"),
        (["nanogpt=.", "--model", "char-bigram", "--device", "cpu"], "error: model is 'char-bigram', which no peer has"),
        (["nanogpt=.", "--model", "gtp2", "--device", "cpu"], "error: unknown model 'gtp2'"),
        (["nanogpt=.", "--micro-batch", "0", "--device", "cpu"], "error: micro_batch is 0"),
        (["nanogpt=.", "--micro-batch", "2000", "--device", "cpu"], "error: there are 50,000 tokens, too few for steps of"),
        (["nanogpt=.", "--trials", "0"], "error: Invalid value for '--trials'"),
        (["nanogpt=.", "--steps", "4"], "error: Invalid value for '--steps'"),
        (["nanogpt=.", "--steps", "181"], "error: Invalid value for '--steps'"),
        (["nanogpt=.", "--trials", "1000000000000"], "error: Invalid value for '--trials'"),
        ([], "error: Missing argument 'NAME=DIR"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, here, monkeypatch, change: list[str], words: str) -> None:
    monkeypatch.chdir(ROOT)
    code, _, err = run(capsys, "peers", *change, "--results-dir", str(here.results))
    assert code == 2 and words in err and err.count("\n") == 1
    assert not list(here.results.rglob("*.json"))


def test_without_gpt2s_encoding_one_line_says_so(capsys, here, monkeypatch) -> None:
    monkeypatch.setattr(data.gpt2, "gpt2_at_hand", lambda: False)
    monkeypatch.setattr(data.bpe, "installed", lambda package: True)
    code, _, err = run(capsys, *here.arguments)
    assert code == 2 and "point TIKTOKEN_CACHE_DIR at a copy" in err and err.count("\n") == 1


def test_without_tiktoken_one_line_says_how_to_get_it(capsys, here, monkeypatch) -> None:
    monkeypatch.setattr(data.gpt2, "gpt2_at_hand", lambda: False)
    monkeypatch.setattr(data.bpe, "installed", lambda package: package != "tiktoken")
    code, _, err = run(capsys, *here.arguments)
    assert code == 2 and "pip install tiktoken" in err and err.count("\n") == 1


def test_on_apples_gpu_it_is_refused(here) -> None:
    mps = Device(kind="mps", name="Apple M3", slug="mps-m3", memory_bytes=2**34, capability=None, count=1)
    with pytest.raises(ValueError, match="peers are compared on cuda or cpu, and this is mps; add --device cpu"):
        stepladder.peers.settle(mps, {}, False, None, console=None)


def test_under_torchrun_it_is_refused(capsys, here, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    code, _, err = run(capsys, *here.arguments)
    assert code == 2 and "start it without torchrun" in err


def test_it_has_a_help_page() -> None:
    done = subprocess.run([sys.executable, "-m", "stepladder", "peers", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--micro-batch" in done.stdout and "NAME=DIR" in done.stdout
