"""Datasets: prepared the same by any number of processes, continued after any end, and refused when damaged."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from data import encoding, stdlib, tokenizers
from data import prepare as preparing
from data.dataset import DatasetError, open_dataset, to_bytes
from data.documents import Piece
from data.encoding import Worker, encode_batch
from data.prepare import dataset, prepare
from data.shards import ShardError, read_header
from tests.data.damage import MUTATIONS, Payload, payloads
from tests.data.samples import Texts

ROOT = Path(__file__).parents[2]
RNG = random.Random(0)
WORDS = ["the", "cat", "naïve", "東京", "🎉", "\n", "<|endoftext|>", "x = 1"]
DOCUMENTS = tuple(" ".join(RNG.choices(WORDS, k=RNG.randrange(1, 60))) for _ in range(120))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """So that a few kilobytes are many batches."""
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1000)


def corpus(*train, **more) -> Texts:
    return Texts(train=train or DOCUMENTS, **more)


def made(tmp_path, source=None, tokenizer: str = "bytes", **options):
    return prepare(source or corpus(), tokenizer, corpora=tmp_path, **{"workers": 1, "shard_tokens": 3000, **options})


def ids(data, split: str = "train") -> np.ndarray:
    return np.concatenate([shard.open() for shard in data.shards(split)])


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_every_document_is_there_and_ends_with_the_mark(tmp_path):
    data = made(tmp_path)
    assert bytes(ids(data).astype(np.uint8)).decode() == "".join(text + "\n" for text in DOCUMENTS)
    assert bytes(ids(data, "val").astype(np.uint8)) == b"validation\n"
    assert len(data.shards("train")) > 3 and all(shard.num_tokens >= 3000 for shard in data.shards("train")[:-1])
    assert data.folder.parent == tmp_path / "texts" and data.folder.name.startswith("bytes-")
    info = data.info
    assert (info["corpus"], info["corpus_version"], info["tokenizer"]) == ("texts", "120", "bytes")
    assert (info["vocab_size"], info["eot"], info["eot_in_text"]) == (256, 10, True)
    assert info["tokenizer_sha256"] == data.tokenizer().sha256 == tokenizers.ByteTokenizer().sha256
    assert info["num_tokens"] == {"train": len(ids(data)), "val": 11}
    assert info["text_bytes"]["train"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert [entry["sha256"] for entry in info["shards"]["train"]] == [s.sha256 for s in data.shards("train")]
    assert open_dataset(data.folder).info == info
    json.dumps(info, allow_nan=False)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path, workers):
    alone, together = made(tmp_path / "1"), made(tmp_path / "n", workers=workers)
    assert contents(alone.folder) == contents(together.folder)
    assert psutil.Process().children() == []


def test_a_document_in_pieces_ends_once(tmp_path):
    data = made(tmp_path, corpus(["one ", "two"], "three", ["four ", "five ", "six"]))
    assert bytes(ids(data).astype(np.uint8)) == b"one two\nthree\nfour five six\n"


def test_a_mark_written_in_a_text_is_text(tmp_path):
    pytest.importorskip("rustbpe")
    data = made(tmp_path, tokenizer="bpe-300")
    tokenizer = data.tokenizer()
    assert data.info["tokenizer"] == "rustbpe-300" and not data.info["eot_in_text"]
    ends = np.flatnonzero(ids(data) == tokenizer.eot)
    parts = np.split(ids(data), ends + 1)[:-1]
    assert [tokenizer.decode(part[:-1].tolist()) for part in parts] == list(DOCUMENTS)


class Marked(tokenizers.ByteTokenizer):
    """Bytes, with the quick way that tiktoken has."""

    def encode_marked(self, text: str) -> np.ndarray:
        parts = [list(part.encode()) for part in text.split(tokenizers.END_OF_TEXT)]
        return np.array(sum(([*part, 256] for part in parts), [])[:-1], np.uint32)


@pytest.mark.parametrize("documents", [DOCUMENTS[:30], ("no mark", "in these"), ("a <|endoftext|> b", "c")])
def test_the_quick_way_of_some_tokenizers_gives_the_same(documents):
    pieces = [Piece(text, i % 3 > 0) for i, text in enumerate(documents)]
    quick, plain = encode_batch(Marked(eot=256), pieces), encode_batch(tokenizers.ByteTokenizer(eot=256), pieces)
    assert quick.ids.tolist() == plain.ids.tolist() and quick.ids.dtype == np.uint32
    assert (quick.texts, quick.text_bytes) == (len(pieces), sum(len(text.encode()) for text in documents))


def test_what_is_there_is_returned_at_once(tmp_path, monkeypatch):
    first, source = made(tmp_path), corpus()
    monkeypatch.setattr(preparing, "encode", lambda *args, **kwargs: pytest.fail("prepared again"))
    assert made(tmp_path, source).info == first.info and not source.read


def test_another_text_tokenizer_or_shard_size_is_another_dataset(tmp_path):
    pytest.importorskip("rustbpe")
    folders = {
        made(tmp_path).folder,
        made(tmp_path, corpus(*DOCUMENTS[:50])).folder,
        made(tmp_path, tokenizer="char").folder,
        made(tmp_path, tokenizer="bpe-300").folder,
        made(tmp_path, shard_tokens=5000).folder,
    }
    assert len(folders) == 5
    assert made(tmp_path, tokenizer="bpe-1k").folder == made(tmp_path, tokenizer="bpe-1024").folder


def test_a_saved_tokenizer_is_known_by_its_content_and_not_by_its_name(tmp_path):
    characters = tokenizers.train_characters(DOCUMENTS + ("validation",))
    for more in ("", "ß"):
        tokenizer = tokenizers.CharacterTokenizer(characters="".join(sorted(characters.characters + more)), name="mine")
        tokenizers.save(tokenizer, tmp_path / "tokenizers" / "mine.json")
        data = made(tmp_path, tokenizer="mine")
        assert data.tokenizer().sha256 == tokenizer.sha256 == data.info["tokenizer_sha256"]
    assert len(list((tmp_path / "texts").glob("mine-*"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"shard_tokens": 0}, "shard_tokens is 0; it must be at least 1"),
        ({"tokenizer": "gpt3"}, "no tokenizer 'gpt3'"),
        ({"source": corpus(val=())}, "corpus 'texts' has no text of split 'val'"),
        ({"tokenizer": "char", "source": corpus(val=())}, "corpus 'texts' has no text of split 'val'"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, **options)
    assert not list(tmp_path.rglob("dataset.json"))


# -- cut off and continued -------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Fate:
    """Counts the moments before and after every flush, rename and removal, and kills at one of them.

    Args:
        moment: to kill at; never by default.
    """

    def __init__(self, patch: pytest.MonkeyPatch, moment: int = -1) -> None:
        self.moments, self.moment = 0, moment
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, operation):
        def run(*args, **kwargs):
            if 0 < self.moment < self.moments:
                return  # the dead clean nothing up
            self.passes()
            operation(*args, **kwargs)
            self.passes()

        return run

    def passes(self) -> None:
        self.moments += 1
        if self.moments == self.moment:
            self.moments += 1
            raise Killed


@pytest.mark.parametrize("start", ["nothing", "a damaged shard"])
def test_wherever_it_is_cut_off_it_goes_on_to_the_same_bytes(tmp_path, start):
    whole = made(tmp_path / "whole")
    expected = contents(whole.folder)

    def begun(name: str) -> Path:
        folder = tmp_path / name / "texts" / whole.folder.name
        if start != "nothing":
            shutil.copytree(whole.folder, folder)
            os.truncate(folder / "train_000001.bin", 500)
        return folder

    def run(name: str, moment: int = -1) -> int:
        with pytest.MonkeyPatch.context() as patch:
            fate = Fate(patch, moment)
            made(tmp_path / name)
        return fate.moments

    begun("counted")
    moments = run("counted")
    assert moments > 20
    for moment in range(1, moments + 1):
        folder = begun(str(moment))
        with pytest.raises(Killed):
            run(str(moment), moment)
        try:
            ended = open_dataset(folder)
        except (DatasetError, ShardError):
            pass
        else:
            assert contents(ended.folder) == expected, "what looks whole is whole"
        assert contents(made(tmp_path / str(moment)).folder) == expected


def test_finished_shards_are_kept_and_their_texts_skipped(tmp_path, monkeypatch):
    whole = made(tmp_path)
    shards = [shard.path for shard in whole.shards("train")]
    before = {path: path.stat().st_ino for path in shards}
    expected = contents(whole.folder)
    (whole.folder / "dataset.json").unlink()
    shards[3].unlink()
    (whole.folder / "train_000099.bin").write_bytes(shards[0].read_bytes())
    encoded = []
    real = preparing.encode
    monkeypatch.setattr(
        preparing, "encode", lambda pieces, *args, **kw: real((encoded.append(p) or p for p in pieces), *args, **kw)
    )
    again = made(tmp_path)
    assert contents(again.folder) == expected
    assert [path for path in shards if path.stat().st_ino == before[path]] == shards[:3]
    assert [p.text for p in encoded] == list(DOCUMENTS[sum(s.texts for s in whole.shards("train")[:3]) :])


KILLED = """
import os, signal, sys
from pathlib import Path
from data import encoding
from data.prepare import prepare
from tests.data.samples import Texts
encoding.BATCH_CHARACTERS = 1000
finished = 0
def progress(what, done, total):
    if done > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
texts = tuple(f"document {i} " * 20 for i in range(400))
prepare(Texts(train=texts), "bytes", corpora=Path(sys.argv[1]), workers=2, shard_tokens=3000, progress=progress)
"""


@pytest.mark.parametrize("done", [0, 40_000])
def test_killed_it_leaves_no_process_behind_and_is_continued(tmp_path, done):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(done)]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("dataset.json"))
    gone = time.monotonic() + 10
    while any("data.encoding" in " ".join(cmd) and str(tmp_path) in " ".join(cmd) for cmd in commands()):
        assert time.monotonic() < gone, "its workers live on"
    source = corpus(*(f"document {i} " * 20 for i in range(400)))
    data = made(tmp_path / "killed", source)
    assert contents(data.folder) == contents(made(tmp_path / "whole", source).folder)


def commands() -> list[list[str]]:
    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]


def test_two_at_once_make_it_once(tmp_path):
    lines, encoded = [], []

    def second(what, done, total):
        lines.append(what)
        if "waiting" in what:
            waiting.set()

    def first(what, done, total):
        if "tokenizing" in what:
            encoded.append(done)
            if not other.is_alive() and not waiting.is_set():
                other.start()
                assert waiting.wait(20)

    waiting = threading.Event()
    result = []
    other = threading.Thread(target=lambda: result.append(made(tmp_path, progress=second)))
    data = made(tmp_path, progress=first)
    other.join(20)
    assert result[0].info == data.info and encoded
    assert not any("tokenizing" in line for line in lines)


def test_a_full_disk_leaves_no_half_and_what_is_finished_stays(tmp_path, monkeypatch):
    expected = contents(made(tmp_path / "whole").folder)
    real, written = preparing.ShardWriter.append, []

    def full(self, *args, **kwargs):
        written.append(self.path.name)
        if len(written) > 8:
            raise OSError(28, "No space left on device", str(self.path))
        real(self, *args, **kwargs)

    monkeypatch.setattr(preparing.ShardWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        made(tmp_path)
    (folder,) = (tmp_path / "texts").iterdir()
    left = contents(folder)
    assert "train_000000.bin" in left and "dataset.json" not in left
    assert left == {name: expected[name] for name in left}
    monkeypatch.setattr(preparing.ShardWriter, "append", real)
    assert contents(made(tmp_path).folder) == expected


# -- workers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.save(tokenizers.train_characters(["abc\n"]), path)
    return path


def test_a_worker_passes_on_what_a_tokenizer_refuses_and_goes_on(saved):
    with Worker(saved) as worker:
        with pytest.raises(ValueError, match="no id for the character 'z'"):
            worker.encode([Piece("abz", True)])
        assert worker.encode([Piece("abc", True), Piece("c", False)]).ids.tolist() == [1, 2, 3, 0, 3]


def test_a_worker_that_dies_is_an_error_and_no_hang(saved):
    with Worker(saved) as worker:
        worker.encode([Piece("a", True)])
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(OSError, match="a tokenizing process ended with code -9"):
            worker.encode([Piece("a" * 1_000_000, True)])


def test_an_error_in_a_worker_ends_the_preparation_and_its_processes(tmp_path, saved):
    bad = corpus(*["abc\n" * 100] * 20, "abz", *["abc\n" * 100] * 20, val=("abc",))
    with pytest.raises(ValueError, match="no id for the character 'z'"):
        made(tmp_path, bad, tokenizer=str(saved), workers=2)
    assert psutil.Process().children() == [] and not list(tmp_path.rglob("dataset.json"))
    assert not list(tmp_path.rglob("*.tmp"))


# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_shard_in_anothers_place_is_refused_by_name_and_made_again(tmp_path):
    data = made(tmp_path)
    expected = contents(data.folder)
    first, second = (shard.path for shard in data.shards("train")[:2])
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(ShardError, match="train_000000.bin is not the shard that dataset.json lists"):
        open_dataset(data.folder)
    lines = []
    made(tmp_path, progress=lambda what, done, total: lines.append(what))
    assert "train_000000.bin is not the shard" in lines[0] and contents(data.folder) == expected


def test_a_shard_of_another_dataset_is_not_kept(tmp_path):
    data = made(tmp_path)
    other = made(tmp_path / "other", corpus(*reversed(DOCUMENTS)), shard_tokens=2999)
    expected = contents(data.folder)
    (data.folder / "dataset.json").unlink()
    (data.folder / "train_000000.bin").write_bytes((other.folder / "train_000000.bin").read_bytes())
    assert contents(made(tmp_path).folder) == expected


def test_another_tokenizer_beside_the_shards_is_refused(tmp_path):
    data = made(tmp_path)
    tokenizers.save(tokenizers.train_characters(DOCUMENTS), data.folder / "tokenizer.json")
    with pytest.raises(DatasetError, match="tokenizer.json is damaged, or not the one"):
        open_dataset(data.folder)
    # Even if the description agrees: the shards say which tokenizer made them.
    info = json.loads((data.folder / "dataset.json").read_text())
    info.pop("checksum")
    info["tokenizer_file_sha256"] = hashlib.sha256((data.folder / "tokenizer.json").read_bytes()).hexdigest()
    (data.folder / "dataset.json").write_bytes(to_bytes(info))
    with pytest.raises(DatasetError, match="tokenizer.json is not the tokenizer that made the shards"):
        open_dataset(data.folder).tokenizer()
    assert contents(made(tmp_path).folder)["tokenizer.json"]


@pytest.mark.parametrize("name", ["dataset.json", "tokenizer.json"])
def test_damage_of_any_kind_in_the_descriptions_is_refused(tmp_path, name):
    data, rng = made(tmp_path), random.Random(0)
    path = data.folder / name
    whole = path.read_bytes()
    for mutation in MUTATIONS.values():
        for _ in range(6):
            path.write_bytes(mutation(whole, rng))
            with pytest.raises(DatasetError, match=f"{name} is damaged"):
                open_dataset(data.folder)
    path.unlink()
    with pytest.raises(DatasetError, match=f"{name} cannot be read: No such file"):
        open_dataset(data.folder)


def rewrite(folder, change) -> None:
    """Changes a description and its checksum with it."""
    info = json.loads((folder / "dataset.json").read_text())
    info.pop("checksum")
    changed = change(info)
    (folder / "dataset.json").write_bytes(to_bytes(info if changed is None else changed))


LIES = {
    "path": lambda info: info["shards"]["train"][0].update(name="../../secret.bin"),
    "count": lambda info: info["shards"]["train"][0].update(num_tokens=1 << 60),
    "checksum": lambda info: info["shards"]["val"][0].update(sha256="00" * 32),
    "a shard less": lambda info: info["shards"]["train"].pop(),
    "a shard more": lambda info: info["shards"]["train"].append(info["shards"]["train"][0]),
    "many shards": lambda info: info["shards"].update(train=[0] * 100_000),
    "no shards": lambda info: info.pop("shards"),
    "shards a text": lambda info: info["shards"].update(val="x"),
    "vocabulary": lambda info: info.update(vocab_size=50257),
    "total": lambda info: info["num_tokens"].update(train=5),
    "tokenizer": lambda info: info.update(tokenizer_sha256="00" * 32),
    "a key more": lambda info: info.update(extra=1),
    "corpus a list": lambda info: info.update(corpus=[]),
    "mark not a truth": lambda info: info.update(eot_in_text="no"),
    "a list": lambda info: {"0": [info]},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_description_that_lies_is_refused_even_with_a_right_checksum(tmp_path, lie):
    data = made(tmp_path)
    rewrite(data.folder, lie)
    began = time.perf_counter()
    with pytest.raises((DatasetError, ShardError), match=str(data.folder)):
        open_dataset(data.folder)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("bomb", [b"[" * 3_000_000, b"[],", b'{"a":' * 100_000, b"9" * 100_000], ids=len)
def test_a_description_built_to_explode_is_refused(tmp_path, bomb):
    data = made(tmp_path)
    head = (bomb * (1 if len(bomb) > 9 else 1_300_000))[: 4 << 20]
    checksum = hashlib.sha256(head).hexdigest()
    (data.folder / "dataset.json").write_bytes(head + f',\n "checksum": "{checksum}"\n}}\n'.encode())
    began = time.perf_counter()
    with pytest.raises(DatasetError, match="dataset.json"):
        open_dataset(data.folder)
    assert time.perf_counter() - began < 1


def test_links_and_endless_files_are_not_followed(tmp_path):
    data = made(tmp_path)
    for name in ("dataset.json", "tokenizer.json", "train_000001.bin"):
        path = data.folder / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
        with pytest.raises((DatasetError, ShardError), match=f"{name} is not a plain file"):
            open_dataset(data.folder)
        path.unlink()
        with open(path, "wb") as file:
            file.truncate(1 << 40)  # takes no space
        began = time.perf_counter()
        with pytest.raises((DatasetError, ShardError), match=name):
            open_dataset(data.folder)
        assert time.perf_counter() - began < 1
        path.unlink()
        (tmp_path / name).rename(path)
    assert open_dataset(data.folder).info == data.info


@pytest.mark.parametrize("name", ["dataset.json", "tokenizer.json", "train_000000.bin"])
@pytest.mark.parametrize("payload", payloads(), ids=lambda payload: payload.name)
def test_no_pickle_in_a_dataset_runs(tmp_path, name, payload):
    data, trace = made(tmp_path), tmp_path / "it ran"
    (data.folder / name).write_bytes(pickle.dumps(Payload(payload, trace)))
    with pytest.raises((DatasetError, ShardError), match=name):
        open_dataset(data.folder)
    assert not trace.exists()


# -- what a user names -----------------------------------------------------------------------------------------------


def test_a_text_file_is_prepared(tmp_path):
    text = tmp_path / "Book.txt"
    text.write_text("a line of text\n" * 100)
    data = dataset(text, "bytes", corpora=tmp_path / "corpora")
    assert data.info["corpus"] == "book" and data.info["num_tokens"] == {"train": 1351, "val": 151}


def test_the_folder_of_a_prepared_dataset_has_its_own_tokenizer(tmp_path):
    data = made(tmp_path)
    assert dataset(data.folder, corpora=tmp_path).info == data.info
    assert dataset(data.folder, "bytes", corpora=tmp_path).info == data.info
    with pytest.raises(DatasetError, match="was prepared with the tokenizer 'bytes', not 'gpt2'"):
        dataset(data.folder, "gpt2", corpora=tmp_path)


def foreign_folder(tmp_path) -> Path:
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    np.arange(200, dtype="<u2").tofile(folder / "train.bin")
    np.save(folder / "edu_val_000000.npy", np.arange(50, dtype="<u2"))
    return folder


def test_a_folder_of_another_projects_shards_is_a_dataset(tmp_path):
    folder = foreign_folder(tmp_path)
    data = dataset(folder, "bytes", corpora=tmp_path)
    assert ids(data).tolist() == list(range(200)) and ids(data, "val").tolist() == list(range(50))
    assert data.info["num_tokens"] == {"train": 200, "val": 50} and data.info["corpus"] == "nanogpt"
    assert data.info["tokenizer"] == "bytes" == data.tokenizer().name
    assert sorted(path.name for path in folder.iterdir()) == ["edu_val_000000.npy", "train.bin"]
    version = data.info["corpus_version"]
    np.arange(201, dtype="<u2").tofile(folder / "train.bin")
    assert dataset(folder, "bytes", corpora=tmp_path).info["corpus_version"] != version


def test_what_such_a_folder_lacks_is_said(tmp_path):
    folder = foreign_folder(tmp_path)
    for learned in ("char", "bpe-8k"):
        with pytest.raises(ValueError, match="holds tokens and no text"):
            dataset(folder, learned, corpora=tmp_path)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        dataset(folder, corpora=tmp_path)
    (folder / "edu_val_000000.npy").unlink()
    with pytest.raises(DatasetError, match="has no tokens of split 'val'"):
        dataset(folder, "bytes", corpora=tmp_path).shards("val")
    np.array([255, 256], dtype="<u2").tofile(folder / "train.bin")
    with pytest.raises(ShardError, match="train.bin has id 256 at token 1, outside the vocabulary of 256"):
        dataset(folder, "bytes", corpora=tmp_path).shards("train")[0].open()


def test_shards_are_read_by_header_alone_until_they_are_opened(tmp_path):
    data = made(tmp_path)
    path = data.shards("train")[1].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read_header(path) == open_dataset(data.folder).shards("train")[1]
    with pytest.raises(ShardError, match="train_000001.bin"):
        open_dataset(data.folder).shards("train")[1].open()


# -- how fast, in how much memory ------------------------------------------------------------------------------------

LIBRARY = [text for _, text in stdlib.documents()]
PARAGRAPHS = [part + "\n\n" for text in LIBRARY for part in text.split("\n\n")]


def others() -> float:
    """CPU seconds that other programs have used since the machine started."""
    times = psutil.cpu_times()
    own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return times.user + times.system - own


@pytest.mark.soak
@pytest.mark.parametrize("documents", [LIBRARY, PARAGRAPHS], ids=["modules", "paragraphs"])
def test_two_processes_are_half_again_as_fast_as_one_thread_of_tiktoken(tmp_path, monkeypatch, documents):
    if not tokenizers.gpt2_at_hand():
        pytest.skip("GPT-2's files are not in tiktoken's cache")
    import tiktoken

    monkeypatch.undo()  # batches of their usual size
    encode = tiktoken.get_encoding("gpt2").encode_ordinary
    texts = tuple(documents) * 8  # about 100 MB, so that the start of the processes weighs little
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ratios, peak, done = [], 0, threading.Event()

    def watch():
        nonlocal peak
        own = psutil.Process()
        while not done.wait(0.2):
            with contextlib.suppress(psutil.Error):
                peak = max(peak, sum(p.memory_full_info().uss for p in [own, *own.children(recursive=True)]))

    watching = threading.Thread(target=watch)
    watching.start()
    for trial in range(5):
        disturbed, began = others(), time.perf_counter()
        num_tokens = sum(len(encode(text)) + 1 for text in texts)
        between = time.perf_counter()
        data = prepare(Texts(train=texts), "gpt2", corpora=tmp_path / str(trial), workers=2)
        ended = time.perf_counter()
        assert data.info["num_tokens"]["train"] == num_tokens
        alone, together = megabytes / (between - began), megabytes / (ended - between)
        disturbed = (others() - disturbed) / (ended - began)
        print(
            f"\n{megabytes:.0f} MB, one thread {alone:.1f} MB/s, prepared {together:.1f} MB/s: {together / alone:.2f} x"
            f" (others took {disturbed:.2f} cores)",
            end="",
        )
        if disturbed < 0.1:
            ratios.append(together / alone)
            if len(ratios) == 3:
                break
    done.set()
    watching.join()
    print(f"; at most {peak / 1e6:,.0f} MB of memory, the test's own text among it")
    assert peak < 1e9
    if encoding.num_workers() < 2 or not ratios:
        pytest.skip("two cores were not free")
    assert sorted(ratios)[len(ratios) // 2] >= 1.5
