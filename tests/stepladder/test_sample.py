"""`stepladder sample` as a user meets it: text on stdout, all else on stderr, one line for whatever is wrong."""

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data import tokenizers
from data.tokenizers import END_OF_TEXT, ByteTokenizer
from stepladder import sample, writing
from stepladder.cli import main
from stepladder.writing import Stream, show
from tests.factories import make_sampling_record
from tests.train import tiny

ON_CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer and a table, both of characters, and a transformer of bytes' pairs."""
    folder = tmp_path_factory.mktemp("runs")
    short = {"train.steps": 5, "validation.every": 5, "samples.every": 0}
    tiny.run(folder, "run", short)
    tiny.run(folder, "table", short | {"model.name": "char-bigram"})
    tiny.run(folder, "bpe", short | {"data.tokenizer": "bpe-300"})
    return folder


def ok(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[str, str]:
    code = main(["sample", *map(str, arguments), *ON_CPU])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert main(["sample", *map(str, arguments), *ON_CPU]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


# -- what it writes ----------------------------------------------------------------------------------------------------


def test_the_prompt_goes_on_and_the_seed_decides_how(runs: Path, capsys) -> None:
    texts = [
        ok(capsys, "gpt2", "--ckpt", runs / "run", "--prompt", "1 little", "--max-tokens", 30, "--seed", seed)[0]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert all(t.startswith("1 little") and len(t) == len("1 little") + 30 + 1 for t in texts)


def test_rungs_that_promise_it_write_the_same_text(runs: Path, capsys) -> None:
    common = ["gpt2", "--ckpt", runs / "run", "--prompt", "1 l", "--max-tokens", 20]
    usual, other, none, none_again = (
        ok(capsys, *common, *more)[0] for more in ([], ["--rungs", "static_cache"], ["--no-kv_cache"], ["--rungs", ""])
    )
    assert usual == other == none == none_again


def test_what_was_named_is_what_runs(runs: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    honest = sample.choose_rungs

    def watched(*arguments, **more):
        used.append(honest(*arguments, **more).id)
        return honest(*arguments, **more)

    monkeypatch.setattr(sample, "choose_rungs", watched)
    for more in (
        [],
        ["--no-kv-cache"],
        ["--rungs", "bf16, static_cache"],
        ["--rungs", "kv_cache,bf16", "--no-bf16"],
        ["-n", 3],
    ):
        ok(capsys, "gpt2", "--ckpt", runs / "run", "--max-tokens", 2, *more)
    ok(capsys, "char-bigram", "--ckpt", runs / "table", "--max-tokens", 2)
    assert used == ["kv_cache", "baseline", "static_cache+bf16", "kv_cache", "kv_cache@3", "baseline"]


def test_temperature_0_takes_the_likeliest_and_needs_no_luck(runs: Path, capsys) -> None:
    texts = {
        ok(capsys, "gpt2", "--ckpt", runs / "run", "--temperature", 0, "--max-tokens", 9, "--seed", s)[0]
        for s in range(3)
    }
    assert len(texts) == 1
    assert texts == {ok(capsys, "gpt2", "--ckpt", runs / "run", "--top-k", 1, "--max-tokens", 9)[0]}


def test_several_samples_are_numbered_and_differ(runs: Path, capsys) -> None:
    out, err = ok(capsys, "gpt2", "--ckpt", runs / "run", "--prompt", "2", "-n", 3, "--max-tokens", 12)
    parts = re.split(r"\[\d/3\]\n", out)
    assert (
        parts[0] == "" and len(set(parts[1:])) == 3 and all(p.startswith("2") and p.endswith("\n\n") for p in parts[1:])
    )
    assert "36 tokens in" in err


def test_without_a_prompt_a_document_is_begun(runs: Path, capsys) -> None:
    out, err = ok(capsys, "char-bigram", "--ckpt", runs / "table", "--max-tokens", 8)
    assert len(out) == 9 and re.search(r"8 tokens in [\d.]+ s, [\d,.]+ tok/s; the first after [\d,]+ ms", err)


def test_the_prompt_from_a_file_and_from_stdin(
    runs: Path, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    common = ["gpt2", "--ckpt", runs / "run", "--max-tokens", 5]
    given = ok(capsys, *common, "--prompt", "1 fox\nsat")[0]
    (tmp_path / "prompt.txt").write_bytes(b"1 fox\nsat\n")
    assert ok(capsys, *common, "--prompt-file", tmp_path / "prompt.txt")[0] == given
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 fox\nsat\n")))
    assert ok(capsys, *common, "--prompt-file", "-")[0] == given


def test_a_checkpoint_is_found_however_it_is_named(runs: Path, capsys) -> None:
    run = runs / "run"
    step = next((run / "checkpoints").glob("step-*"))
    texts = {
        ok(capsys, "gpt2", "--ckpt", place, "--prompt", "1", "--max-tokens", 6)[0]
        for place in (run, run / "checkpoints", step, run / "checkpoints" / "best")
    }
    assert len(texts) == 1


def test_best_takes_what_was_measured(runs: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from hardware import detect
    from results import store

    monkeypatch.setattr(sample, "RECORDS", runs / "records")
    assert "--best needs a record of writing on" in refused(capsys, "gpt2", "--ckpt", runs / "run", "--best")
    measured = make_sampling_record(
        "cpu", batches=(), statuses={"kv_cache+static_cache+compile+bf16+int8": ("oom", "x")}
    )
    store.write(dataclasses.replace(measured, device={**measured.device, "slug": detect("cpu").slug}), runs / "records")
    honest = sample.measured_best(detect("cpu"))
    assert honest == ["kv_cache", "static_cache", "compile"]
    capsys.readouterr()
    monkeypatch.setattr(sample, "measured_best", lambda device: ["static_cache", "int8"])
    out, err = ok(capsys, "gpt2", "--ckpt", runs / "run", "--best", "--max-tokens", 3)
    assert "left out: int8 (needs 'compile', which is not on)" in err


# -- what it says ------------------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_and_a_window_that_slides_are_told(runs: Path, capsys, monkeypatch) -> None:
    torch.manual_seed(0)
    from model import GPT2, GPT2Config

    loaded = sample.load_model("gpt2", runs / "run")
    small = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=loaded.tokenizer.vocab_size))
    monkeypatch.setattr(sample, "load_model", lambda *a, **k: sample.Loaded(**{**vars(loaded), "model": small}))
    common = ["gpt2", "--ckpt", "x", "--prompt", "1 little duck sat on a wall"]
    _, err = ok(capsys, *common, "--max-tokens", 5)
    assert "the prompt has 27 tokens; the model sees the last 16" in err
    assert (
        "past 16 tokens the window slides, and is read anew for every token; --slide 4 reads it anew for every 4th"
        in err
    )
    _, err = ok(capsys, *common, "--max-tokens", 5, "--slide", 4)
    assert "the model sees the last 15" in err and "read anew" not in err
    _, err = ok(capsys, "gpt2", "--ckpt", "x", "--prompt", "1", "--max-tokens", 15)
    assert "window" not in err


def test_nothing_but_text_is_on_stdout(runs: Path, capsys) -> None:
    out, err = ok(capsys, "gpt2", "--ckpt", runs / "bpe", "--prompt", "1 fox", "--max-tokens", 4)
    assert out.startswith("1 fox") and "tok/s" in err and "tok/s" not in out


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "1", "--prompt-file", "x"], "--prompt and --prompt-file both say"),
        (["--prompt-file", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--prompt", "1 ÿ"], "tokenizer 'char' has no id for the character 'ÿ' (U+00FF)"),
        (["--temperature", "-1"], "temperature is -1.0; it must be 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "warm"], "--temperature"),
        (["--top-p", "0"], "top_p is 0.0; it must lie in (0, 1]"),
        (["--top-p", "1.5"], "top_p is 1.5; it must lie in (0, 1]"),
        (["--top-k", "-1"], "top_k is -1; it must be 0"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--seed", str(2**64)], "--seed"),
        (["-n", "0"], "-n"),
        (["-n", str(2**70)], "-n"),
        (["--prompt", "1 \udcff"], "--prompt is not UTF-8 text"),
        (["--sed", "3"], "unknown argument '--sed': did you mean '--seed'?"),
        (["--prompt", "1", "--slide", "17"], "slide is 17; it must be from 1 to the model's 16 positions"),
        (["--rungs", "flash"], "unknown rung 'flash': choose from kv_cache, static_cache, compile, bf16, int8"),
        (["--rungs", "compile"], "rung 'compile' needs 'static_cache'"),
        (["--rungs", "kv_cache", "--best"], "--best and --rungs both say"),
        (["--no-flash"], "unknown argument '--no-flash'"),
        (["--no-comple"], "did you mean '--no-compile'?"),
        (["extra"], "unknown argument 'extra'"),
    ],
)
def test_a_wrong_wish_is_one_line(runs: Path, capsys, arguments: list[str], words: str) -> None:
    assert words in refused(capsys, "gpt2", "--ckpt", runs / "run", *arguments)


def test_a_missing_a_damaged_and_a_wrong_checkpoint_are_one_line(runs: Path, capsys, tmp_path: Path) -> None:
    assert "gpt2 needs its weights: add --ckpt" in refused(capsys, "gpt2")
    assert "no such folder" in refused(capsys, "gpt2", "--ckpt", tmp_path / "nowhere")
    assert "holds a char-bigram" in refused(capsys, "gpt2", "--ckpt", runs / "table")
    assert "holds a pico" in refused(capsys, "char-bigram", "--ckpt", runs / "run")
    assert "unknown model 'gpt3': did you mean 'gpt2'?" in refused(capsys, "gpt3", "--ckpt", runs / "run")
    assert "cannot run on" in refused(capsys, "char-bigram", "--ckpt", runs / "table", "--rungs", "kv_cache")
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    step = next((runs / "run" / "checkpoints").glob("step-*"))
    copy = folder / "checkpoints" / step.name
    copy.mkdir()
    for file in step.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert "tokenizer" in refused(capsys, "gpt2", "--ckpt", copy)
    tokenizers.save(ByteTokenizer(), folder / "tokenizer.json")
    assert "is not the tokenizer" in refused(capsys, "gpt2", "--ckpt", copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert "is damaged" in refused(capsys, "gpt2", "--ckpt", copy)


def test_a_prompt_that_is_not_utf8_is_one_line(runs: Path, capsys, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("où".encode("latin-1"))
    words = refused(capsys, "gpt2", "--ckpt", runs / "run", "--prompt-file", tmp_path / "latin1.txt")
    assert "latin1.txt is not UTF-8 text (byte 0xf9 at place 1); convert it" in words
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert "stdin is not UTF-8 text" in refused(capsys, "gpt2", "--ckpt", runs / "run", "--prompt-file", "-")


def test_a_prompt_from_no_stdin_is_one_line(runs: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as it is where it was closed before the start
    assert "the prompt is empty" in refused(capsys, "gpt2", "--ckpt", runs / "run", "--prompt-file", "-")


@pytest.mark.parametrize("where", ["load_model", "show"])
def test_a_lack_of_memory_is_one_line(runs: Path, capsys, monkeypatch, where: str) -> None:
    def too_large(*arguments: object, **more: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you\ntried")

    monkeypatch.setattr(sample, where, too_large)
    words = refused(capsys, "gpt2", "--ckpt", runs / "run", "--max-tokens", 5, "--prompt", "1")
    assert words == "error: out of memory; lower -n or --max-tokens, or write with --device cpu\n"


# -- characters --------------------------------------------------------------------------------------------------------

MIXED = "naïve 🦆 çà 漢字 é — \ufffd ok"


@pytest.mark.parametrize("text", [MIXED, "", "🦆" * 5, "a\ufffd"])
def test_no_character_is_ever_broken(text: str) -> None:
    """One byte per token, the hardest case: what is printed is always the beginning of the text."""
    stream = Stream([bytes([value]) for value in range(256)])
    shown = ""
    for byte in text.encode():
        shown += stream(byte)
        assert text.startswith(shown)
    assert shown + stream.rest() == text


@pytest.mark.parametrize(
    "payload", [b"\xe2\x82", b"\xff\xfea", b"a\xe2\x82b\xe2", b"\xf0\x9f\xa6", b"\xe2\x82\xe2\x82\xac"]
)
def test_what_is_no_text_comes_out_as_decoding_it_whole_would(payload: bytes) -> None:
    stream = Stream([bytes([value]) for value in range(256)])
    assert "".join(map(stream, payload)) + stream.rest() == payload.decode("utf-8", "replace")


def test_every_tokenizer_streams_its_texts(runs: Path) -> None:
    tokenizer = tokenizers.load(runs / "bpe" / "tokenizer.json")
    from data.token_bytes import token_bytes

    stream = Stream(token_bytes(tokenizer))
    (ids,) = tokenizer.encode([MIXED])
    assert "".join(map(stream, ids)) + stream.rest() == MIXED == tokenizer.decode(ids)


# -- the end of a document ---------------------------------------------------------------------------------------------


def shown(capsys, tokenizer, columns: list[list[int]], *, stop: bool) -> str:
    steps = iter(torch.tensor(columns).T)
    show(steps, tokenizer, "P", num=len(columns), stop=stop, told=lambda: False)
    left = len(list(steps))
    return capsys.readouterr().out + f"<{left} not asked for>"


def test_a_sample_ends_with_its_document(runs: Path, capsys) -> None:
    tokenizer = tokenizers.load(runs / "bpe" / "tokenizer.json")
    a, b, end = ord("a"), ord("b"), tokenizer.eot
    assert tokenizer.decode([a, b]) == "ab"
    assert shown(capsys, tokenizer, [[a, end, b, b]], stop=True) == "Pa\n<2 not asked for>"
    assert shown(capsys, tokenizer, [[a, end, b, b]], stop=False) == f"Pa{END_OF_TEXT}bb\n<0 not asked for>"
    several = shown(capsys, tokenizer, [[a, end, b, b], [b, b, end, a]], stop=True)
    assert several == "[1/2]\nPa\n\n[2/2]\nPbb\n\n<1 not asked for>"


def test_a_newline_ends_no_sample_unless_asked(runs: Path, capsys) -> None:
    bpe, char = (tokenizers.load(runs / name / "tokenizer.json") for name in ("bpe", "run"))
    assert writing.stops(bpe) and not writing.stops(char) and not writing.stops(ByteTokenizer())
    common = ["gpt2", "--ckpt", runs / "run", "--prompt", "1", "--max-tokens", 200, "--seed", 1]
    long, short = ok(capsys, *common)[0], ok(capsys, *common, "--stop")[0]
    assert "\n" in long[:-1] and short == long.split("\n")[0] + "\n"


# -- being told to stop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "num"), [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 2, marks=pytest.mark.soak)])
def test_a_signal_ends_it_with_what_there_is(runs: Path, sign: signal.Signals, num: int) -> None:
    command = [
        sys.executable,
        "-m",
        "stepladder",
        "sample",
        "gpt2",
        "--ckpt",
        str(runs / "run"),
        "--max-tokens",
        "1000000",
        "-n",
        str(num),
        *ON_CPU,
    ]
    process = subprocess.Popen(
        command,
        cwd=tiny.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    process.stderr.readline()  # that the window will slide: the next thing is writing
    if num == 1:
        process.stdout.read(20)
    process.send_signal(sign)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sign and b"Traceback" not in err
    if num == 1:
        assert b"tokens in" in err
