import json
import subprocess
import sys

import numpy as np
import pytest

from data import prepare as preparing
from data import stdlib, tokenizers
from data.corpora import validation_names
from data.tokens import batches, load_tokens

# By their names, c.py is for validation.
DOCS = [("a.py", "x = 'naïve'\n" * 40), ("b.py", "def f(x):\n    return x\n" * 30), ("c.py", "# 東京 🎉")]
TRAIN = [text for name, text in DOCS if name not in validation_names(name for name, _ in DOCS)]


@pytest.fixture
def small(monkeypatch):
    """Three documents in the place of the library, and nothing installed but numpy."""
    monkeypatch.setattr(stdlib, "documents", lambda: DOCS)
    monkeypatch.setattr(tokenizers, "installed", lambda package: False)
    monkeypatch.setattr(tokenizers, "gpt2_at_hand", lambda: False)


def test_importing_data_imports_neither_torch_nor_a_tokenizer():
    code = "import sys, data; sys.exit(bool({'torch', 'tiktoken', 'rustbpe', 'tokenizers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bytes_where_nothing_is_installed(small, tmp_path):
    source = load_tokens(50257, corpora=tmp_path)
    assert source.tokens.dtype == np.uint16 and source.tokens.ndim == 1
    assert bytes(source.tokens.astype(np.uint8)).decode() == "".join(text + "\n" for text in TRAIN)
    assert source.info["tokenizer"] == "bytes" and source.info["tokenizer_vocab_size"] == 256
    assert source.info["corpus"] == "stdlib" and source.info["corpus_version"] == stdlib.version(DOCS)
    assert source.info["num_tokens"] == len(source.tokens)
    json.dumps(source.info, allow_nan=False)


@pytest.mark.parametrize(
    ("packages", "name"), [(("rustbpe", "tiktoken"), "rustbpe-300"), (("tokenizers",), "hf-bpe-300")]
)
def test_every_document_ends_with_the_mark_and_decodes_back(small, tmp_path, monkeypatch, packages, name):
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.setattr(tokenizers, "installed", lambda package: package in packages)
    source = load_tokens(300, corpora=tmp_path)
    assert source.info["tokenizer"] == name and source.tokens.max() < source.info["tokenizer_vocab_size"] <= 300
    tokenizer = tokenizers.choose(300)[1](iter(TRAIN))
    assert tokenizer.sha256 == source.info["tokenizer_sha256"]
    ends = np.flatnonzero(source.tokens == tokenizer.eot)
    assert len(ends) == len(TRAIN) and ends[-1] == len(source.tokens) - 1
    parts = np.split(source.tokens, ends[:-1] + 1)
    assert [tokenizer.decode(part[:-1].tolist()) for part in parts] == TRAIN


def test_the_second_load_reads_the_first_ones_files(small, tmp_path, monkeypatch):
    lines = []
    first = load_tokens(300, corpora=tmp_path, progress=lines.append)
    assert lines
    monkeypatch.setattr(preparing, "encode", lambda *args, **kwargs: pytest.fail("prepared again"))
    lines.clear()
    again = load_tokens(300, corpora=tmp_path, progress=lines.append)
    assert not lines and again.info == first.info and np.array_equal(again.tokens, first.tokens)
    monkeypatch.setattr(stdlib, "documents", lambda: DOCS[:2])  # another library must not meet the old cache
    with pytest.raises(pytest.fail.Exception, match="prepared again"):
        load_tokens(300, corpora=tmp_path)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


SHARD = "train_000000.bin"
DAMAGE = {
    "flipped byte": lambda folder: flip_a_byte(folder / SHARD),
    "truncated": lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-7]),
    "emptied": lambda folder: (folder / SHARD).write_bytes(b""),
    "deleted": lambda folder: (folder / SHARD).unlink(),
    "another split's": lambda folder: (folder / SHARD).write_bytes((folder / "val_000000.bin").read_bytes()),
    "a pickle": lambda folder: np.save((folder / SHARD).open("wb"), np.array([{}]), allow_pickle=True),
    "description flipped": lambda folder: flip_a_byte(folder / "dataset.json"),
    "description garbled": lambda folder: (folder / "dataset.json").write_text("{"),
    "description not text": lambda folder: (folder / "dataset.json").write_bytes(b"\xff\xfe\x00"),
    "description a list": lambda folder: (folder / "dataset.json").write_text("[]"),
    "tokenizer flipped": lambda folder: flip_a_byte(folder / "tokenizer.json"),
    "tokenizer deleted": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed_and_made_again(small, tmp_path, damage):
    first = load_tokens(300, corpora=tmp_path)
    (folder,) = (tmp_path / "stdlib").iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    lines = []
    again = load_tokens(300, corpora=tmp_path, progress=lines.append)
    assert folder.name in lines[0] and "again" in lines[0]
    assert np.array_equal(again.tokens, first.tokens) and again.info == first.info
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    lines.clear()
    assert np.array_equal(load_tokens(300, corpora=tmp_path, progress=lines.append).tokens, first.tokens)
    assert not lines


def test_a_deleted_description_is_a_preparation_that_was_cut_off(small, tmp_path):
    first = load_tokens(300, corpora=tmp_path)
    (folder,) = (tmp_path / "stdlib").iterdir()
    (folder / "dataset.json").unlink()
    assert load_tokens(300, corpora=tmp_path).info == first.info


def test_the_whole_library_through_whatever_is_installed(tmp_path):
    lines = []
    source = load_tokens(8192, corpora=tmp_path, progress=lines.append)
    assert source.info["num_tokens"] == len(source.tokens) > 1_000_000
    assert source.tokens.max() < source.info["tokenizer_vocab_size"] <= 8192
    assert "8192" in lines[0] and f"{len(source.tokens):,} tokens" in lines[-1]
    assert load_tokens(8192, corpora=tmp_path / "again").info == source.info, "the same text, tokenizer and ids"


def test_a_vocabulary_too_small_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 65; it must be at least 257"):
        load_tokens(65, corpora=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_targets_are_the_next_tokens_and_no_place_is_drawn_twice():
    stream = np.arange(1000, dtype=np.uint16)
    inputs, targets = batches(stream, micro_batch=4, seq_len=16, count=50, seed=1)
    assert inputs.shape == targets.shape == (50, 4, 16)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous and targets.flags.c_contiguous
    assert np.array_equal(targets, inputs + 1)  # in this stream the next token is the next number
    assert np.array_equal(inputs[..., 1:], targets[..., :-1])
    starts = inputs[..., 0].ravel()
    assert len(np.unique(starts)) == 200 and not np.array_equal(starts, np.sort(starts))


def test_the_seed_decides():
    stream = np.arange(1000, dtype=np.uint16)
    first, again, other = (batches(stream, micro_batch=2, seq_len=8, count=3, seed=s)[0] for s in (7, 7, 8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_shortest_stream_that_will_do_and_one_token_less():
    inputs, targets = batches(np.arange(14), micro_batch=2, seq_len=8, count=3, seed=0)
    assert sorted(inputs[..., 0].ravel()) == list(range(6)) and targets.max() == 13
    with pytest.raises(ValueError, match="tokens has 13 entries.*count=3.*micro_batch=2.*seq_len=8"):
        batches(np.arange(13), micro_batch=2, seq_len=8, count=3, seed=0)


@pytest.mark.parametrize("size", ["micro_batch", "seq_len", "count"])
def test_sizes_must_be_positive(size):
    with pytest.raises(ValueError, match=f"{size} is 0; it must be at least 1"):
        batches(np.arange(100), **{"micro_batch": 1, "seq_len": 1, "count": 1, "seed": 0, size: 0})
