"""`stepladder tokenizer` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data import tokenizers
from stepladder.tokenizer import app, bytes_per_token

TEXT = "the cat sat on the mat, and the dog sat on the cat – naïve 🎉\n" * 200


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def run(*arguments: object) -> str:
    """What a command printed; raises what it raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False).output


def train(book: Path, name: str, *more: object) -> str:
    pytest.importorskip("rustbpe")
    pytest.importorskip("tiktoken")
    return run("train", "--corpus", book, "--name", name, "--corpora", book.parent / "corpora", *more)


def test_a_tokenizer_is_trained_described_and_kept(book: Path) -> None:
    output = train(book, "my-280", "--vocab-size", 280)
    path = book.parent / "corpora" / "tokenizers" / "my-280.json"
    kept = tokenizers.load(path)
    assert (kept.name, kept.vocab_size, kept.eot) == ("my-280", 280, 279)
    lines = dict(line.split(maxsplit=1) for line in output.splitlines() if line.startswith(("voc", "sha", "bytes")))
    assert str(path) in output and lines["vocabulary"] == "280" and lines["sha256"] == kept.sha256
    compression, end = float(lines["bytes"].split()[2]), TEXT[int(len(TEXT) * 0.9) :]
    assert compression == pytest.approx(bytes_per_token(kept, [end]), rel=0.05) and compression > 2
    found = tokenizers.resolve("my-280", corpora=book.parent / "corpora", texts=lambda split: [])
    assert found.sha256 == kept.sha256


def test_an_existing_name_is_replaced_only_by_force(book: Path) -> None:
    train(book, "mine", "--vocab-size", 270)
    path = book.parent / "corpora" / "tokenizers" / "mine.json"
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"mine.json exists; choose another --name, or replace it with --force"):
        train(book, "mine", "--vocab-size", 280)
    assert path.read_bytes() == before
    train(book, "mine", "--vocab-size", 280, "--force")
    assert json.loads(path.read_text())["vocab_size"] == 280


def test_a_small_corpus_says_that_it_gave_fewer(book: Path) -> None:
    assert "book has too few repeated pairs for 8192 ids" in train(book, "mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--corpus", "stdlibb", "--name", "x"), "did you mean 'stdlib'?"),
        (("--corpus", "stdlib", "--name", "../x"), "letters, digits"),
        (("--corpus", "stdlib", "--name", "gpt2"), "already means"),
        (("--corpus", "stdlib", "--name", "x", "--vocab-size", "256"), "vocab_size is 256; it must be from 257"),
    ],
)
def test_mistakes_are_said_before_any_work(tmp_path: Path, monkeypatch, arguments, message: str) -> None:
    monkeypatch.setattr("data.stdlib.documents", lambda: pytest.fail("the corpus was read"))
    monkeypatch.setattr(tokenizers, "installed", lambda package: True)
    with pytest.raises(ValueError, match=message):
        run("train", *arguments, "--corpora", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_text_is_named_and_nothing_kept(book: Path) -> None:
    folder = book.parent / "texts"
    folder.mkdir()
    book.rename(folder / "book.txt")
    (folder / "cover.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="cover.png is not UTF-8 text"):
        train(folder, "mine")
    assert not (folder.parent / "corpora").exists()


def test_without_a_trainer_one_line_says_what_to_install(book: Path, monkeypatch) -> None:
    monkeypatch.setattr(tokenizers, "installed", lambda package: False)
    with pytest.raises(ValueError, match="pip install rustbpe tiktoken"):
        run("train", "--corpus", book, "--name", "mine", "--corpora", book.parent / "corpora")


def test_show_tells_the_size_and_cuts_a_text(book: Path) -> None:
    output = run("show", "bytes", "hé", "--corpora", book.parent)
    assert "vocabulary       256" in output and tokenizers.ByteTokenizer().sha256 in output
    assert [line.split()[0] for line in output.splitlines()[3:]] == ["104", "195", "169"]
    with pytest.raises(ValueError, match="made from a corpus"):
        run("show", "char", "--corpora", book.parent)


def test_importing_the_command_imports_no_library() -> None:
    code = (
        "import sys, stepladder.tokenizer; "
        "sys.exit(bool({'torch', 'tiktoken', 'rustbpe', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
