"""Shards on disk: what is written is read back, and nothing damaged, foreign or malicious is taken for a shard."""

import hashlib
import os
import pickle
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import foreign
from data.shards import FIELDS, HEADER_BYTES, MAGIC, Shard, ShardError, ShardWriter, read_header
from tests.data.damage import MUTATIONS, Payload, payloads

MADE_OF = {"tokenizer_sha256": "ab" * 32, "origin": "cd" * 32}
GPT2 = {"vocab_size": 50257, "eot": 50256, "tokenizer_sha256": "ab" * 32}


def write(path, ids, *, vocab_size: int = 50257, eot: int = 0, chunk: int = 1000) -> Shard:
    ids = np.asarray(ids)
    with ShardWriter(path, vocab_size=vocab_size, eot=eot, **MADE_OF) as writer:
        for start in range(0, len(ids), chunk):
            writer.append(ids[start : start + chunk], texts=2, text_bytes=30)
        return writer.finish()


def header(**changes) -> bytes:
    """A header whose own checksum holds, whatever it says."""
    fields = {"magic": MAGIC, "version": 1, "itemsize": 2, "vocab_size": 50257, "eot": 0, "count": 4, "texts": 1}
    fields |= {"text_bytes": 1, "tokenizer": bytes(32), "origin": bytes(32)}
    fields |= {"sha256": hashlib.sha256(bytes(8)).digest()}
    packed = FIELDS.pack(*(fields | changes).values())
    return packed + hashlib.sha256(packed).digest()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train_000000.bin"


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50257, "<u2"), (65536, "<u2"), (65537, "<u4"), (1 << 31, "<u4")])
def test_what_is_written_is_read_back(path, vocab_size, dtype):
    ids = np.random.default_rng(0).integers(vocab_size, size=5000)
    ids[7] = vocab_size - 1
    shard = write(path, ids, vocab_size=vocab_size, eot=vocab_size - 1)
    assert shard == read_header(path)
    assert (shard.num_tokens, shard.vocab_size, shard.eot) == (5000, vocab_size, vocab_size - 1)
    assert (shard.texts, shard.text_bytes) == (10, 150)
    assert (shard.tokenizer_sha256, shard.origin) == ("ab" * 32, "cd" * 32)
    tokens = shard.open()
    assert np.array_equal(tokens, ids) and tokens.dtype == dtype
    assert shard.sha256 == hashlib.sha256(tokens.tobytes()).hexdigest()
    assert path.stat().st_size == HEADER_BYTES + tokens.nbytes
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


@settings(deadline=None, max_examples=40)
@given(
    ids=st.lists(st.integers(0, 299), min_size=1, max_size=400),
    chunk=st.integers(1, 50),
    block=st.sampled_from([2, 6, 64]),
)
def test_any_ids_in_any_pieces(tmp_path_factory, ids, chunk, block):
    path = tmp_path_factory.mktemp("shard") / "train_000000.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.shards.BLOCK", block)
        assert write(path, ids, vocab_size=300, chunk=chunk).open().tolist() == ids


def test_nothing_is_copied_into_memory(path):
    shard = write(path, np.zeros(20_000_000, np.uint16), chunk=1 << 20)
    tracemalloc.start()
    try:
        tokens = shard.open()
        assert int(tokens[12_345_678]) == 0
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_nothing_is_visible_before_it_is_finished_and_nothing_is_left_behind(path):
    with pytest.raises(RuntimeError), ShardWriter(path, vocab_size=10, eot=0, **MADE_OF) as writer:
        writer.append(np.arange(10), texts=1, text_bytes=1)
        assert not path.exists()
        raise RuntimeError
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("ids", [[10], [-1], [3, 4, 1 << 40]])
def test_ids_outside_the_vocabulary_are_not_written(path, ids):
    with pytest.raises(ShardError, match=r"train_000000.bin: the tokenizer gave ids .* not all below 10"):
        write(path, ids, vocab_size=10)
    assert list(path.parent.iterdir()) == []


def test_a_shard_of_nothing_is_not_written(path):
    with pytest.raises(ShardError, match="no tokens"):
        write(path, [])


def test_an_id_outside_the_vocabulary_is_found_and_its_place_named(path):
    tokens = np.array([1, 2, 60000, 3], "<u2").tobytes()
    path.write_bytes(header(sha256=hashlib.sha256(tokens).digest()) + tokens)
    with pytest.raises(ShardError, match="train_000000.bin has id 60000 at token 2, outside the vocabulary of 50257"):
        read_header(path).open()


def refused(path) -> str:
    """The line with which a damaged shard is refused; fails if it is not, or if the line does not name the file."""
    with pytest.raises(ShardError) as caught:
        read_header(path).open()
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


def test_every_single_byte_counts(path):
    write(path, range(20), vocab_size=20)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        refused(path)
        path.write_bytes(whole[:place])
        refused(path)


def mutate(path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    write(path, [rng.randrange(20) for _ in range(rng.randrange(1, 600))], vocab_size=20)
    whole = path.read_bytes()
    for kind, mutation in MUTATIONS.items():
        for number in range(count):
            damaged = mutation(whole, rng)
            assert damaged != whole, f"{kind} {number} changed nothing"
            path.write_bytes(damaged)
            refused(path)


def test_damage_of_any_kind_is_refused(path):
    mutate(path, 12, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_mutations_of_each_kind(path, seed):
    mutate(path, 100, seed)


HEADER_BOMBS = {
    "count": header(count=1 << 60),
    "count that wraps around": header(count=(1 << 63) + 4),
    "no tokens": header(count=0),
    "wide tokens": header(itemsize=1 << 31),
    "tokens of no width": header(itemsize=0),
    "vocabulary": header(vocab_size=(1 << 32) - 1),
    "mark outside": header(eot=50257),
    "future version": header(version=2),
    "header alone": header()[:100],
}
SHAPE = b"{'descr': '<u2', 'fortran_order': False, 'shape': (999999999999999,), }"
FOREIGN_BOMBS = {
    "train.npy": [
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + SHAPE.ljust(117) + b"\n",
        b"\x93NUMPY\x02\x00" + struct.pack("<I", (1 << 31) - 1) + SHAPE,
        b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535,
        b"\x93NUMPY",
    ],
    "train.bin": [
        struct.pack("<3i", 20240520, 1, (1 << 31) - 1) + bytes(1012),
        struct.pack("<3i", 20240520, 1, -1) + bytes(1012),
        struct.pack("<3i", 20240520, 7, 4) + bytes(1012),
        struct.pack("<3i", 20240520, 1, 4),
    ],
}


@pytest.fixture
def quick_and_small():
    """What is refused is refused within a second and 50 MB."""
    began = time.perf_counter()
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20 and time.perf_counter() - began < 1


@pytest.mark.parametrize("bomb", HEADER_BOMBS.values(), ids=HEADER_BOMBS.keys())
def test_a_header_that_promises_too_much_is_refused(path, quick_and_small, bomb):
    path.write_bytes(bomb + bytes(8))
    refused(path)


@pytest.mark.parametrize(("name", "bomb"), [(name, bomb) for name, bombs in FOREIGN_BOMBS.items() for bomb in bombs])
def test_so_is_one_of_another_project(tmp_path, quick_and_small, name, bomb):
    path = tmp_path / name
    path.write_bytes(bomb + bytes(8))
    with pytest.raises(ShardError, match=name):
        foreign.read(path, **GPT2)


def test_only_plain_files_are_opened(tmp_path, path):
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, range(5))
    path.symlink_to(elsewhere)
    assert "link" in refused(path)
    path.unlink()
    assert "No such file" in refused(path)
    path.mkdir()
    assert "plain file" in refused(path)
    path.rmdir()
    os.mkfifo(path)  # opening it would wait for ever
    assert "plain file" in refused(path)


def test_a_file_that_shrinks_between_header_and_tokens_is_refused(path):
    shard = write(path, range(100))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match="ends before its last token"):
        shard.open()


# -- of other projects -----------------------------------------------------------------------------------------------

IDS = np.array([50256, 1, 2, 3, 50256, 4, 5, 0, 50255], "<u2")


def nanogpt(path, ids=IDS):
    path.write_bytes(ids.tobytes())


def llmc(path, ids=IDS):
    path.write_bytes(struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253) + ids.tobytes())


def npy(path, ids=IDS):
    np.save(path, ids)


KINDS = {"train.bin": nanogpt, "fineweb_train_000001.bin": llmc, "edufineweb_train_000001.npy": npy}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_other_projects_shards_are_read_where_they_lie(tmp_path, monkeypatch, name, kind):
    kind(tmp_path / name)
    (shard,) = foreign.read(tmp_path / name, **GPT2)
    assert np.array_equal(shard.open(), IDS) and shard.eot == 50256
    monkeypatch.setattr(foreign, "TOKENS_AT_ONCE", 4)  # a large file comes in stretches
    shards = foreign.read(tmp_path / name, **GPT2)
    assert [shard.num_tokens for shard in shards] == [4, 4, 1]
    assert np.array_equal(np.concatenate([shard.open() for shard in shards]), IDS)


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_damage_that_can_be_seen_there_is_refused(tmp_path, name, kind):
    path = tmp_path / name
    kind(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=name):
            foreign.read(path, **GPT2)
    kind(path, np.array([1, 50257, 2], "<u2"))
    with pytest.raises(ShardError, match=f"{name} has id 50257 at token 1, outside the vocabulary of 50257"):
        foreign.read(path, **GPT2)[0].open()


ARRAYS = {
    "big-endian": IDS.astype(">u2"),
    "signed": IDS.astype(np.int32),
    "long": IDS.astype(np.uint64),
    "floats": IDS.astype(np.float32),
    "two dimensions": IDS.reshape(3, 3),
    "a scalar": np.uint16(3),
    "empty": IDS[:0],
    "records": np.zeros(3, [("a", "<u2")]),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_other_arrays_are_no_shards(tmp_path, array):
    path = tmp_path / "train.npy"
    np.save(path, array)
    with pytest.raises(ShardError, match="train.npy"):
        foreign.read(path, **GPT2)


def test_uint32_arrays_are_read(tmp_path):
    np.save(tmp_path / "train.npy", IDS.astype(np.uint32))
    assert np.array_equal(foreign.read(tmp_path / "train.npy", **GPT2)[0].open(), IDS)


def test_our_own_shards_are_known_by_their_tokenizer(tmp_path):
    path = tmp_path / "train.bin"
    write(path, IDS, eot=50256)
    assert foreign.read(path, **GPT2) == [read_header(path)]
    with pytest.raises(ShardError, match="another tokenizer"):
        foreign.read(path, **{**GPT2, "tokenizer_sha256": "00" * 32})


def test_splits_are_told_by_names(tmp_path):
    names = {
        "train": ["edufineweb_train_000002.npy", "fineweb_train_000001.bin", "train.bin", "Train-7.bin"],
        "val": ["edufineweb_val_000000.npy", "my-valid.bin", "val.bin", "TinyStories_validation.bin"],
        "": ["meta.pkl", "strain.bin", "interval.npy", "input.txt", "train.txt", ".train.bin", "tokens.bin"],
    }
    for name in sum(names.values(), []):
        (tmp_path / name).touch()
    found = foreign.find(tmp_path)
    for split in ("train", "val"):
        assert [path.name for path in found[split]] == sorted(names[split])


@settings(deadline=None, max_examples=150)
@given(content=st.binary(max_size=1200), start=st.sampled_from([b"", MAGIC, b"\x93NUMPY\x01\x00", header()[:170]]))
def test_of_any_bytes_only_our_own_errors_come(tmp_path_factory, content, start):
    folder = tmp_path_factory.mktemp("any")
    for name in ("train.bin", "train.npy"):
        (folder / name).write_bytes(start + content)
        for read in (lambda path: [read_header(path)], lambda path: foreign.read(path, **GPT2)):
            try:
                shards = read(folder / name)
                assert all(shard.open().max() < 50257 for shard in shards)
            except ShardError as error:
                assert name in str(error)


@pytest.mark.parametrize("payload", payloads(), ids=lambda payload: payload.name)
@pytest.mark.parametrize("container", ["pickle", "npy", "npz", "header"])
@pytest.mark.parametrize("name", ["train.bin", "train.npy"])
def test_no_pickle_that_poses_as_a_shard_runs(tmp_path, payload, container, name):
    trace, path = tmp_path / "it ran", tmp_path / name
    evil = Payload(payload, trace)
    with open(path, "wb") as file:
        if container == "pickle":
            pickle.dump(evil, file)
        elif container == "npy":
            np.save(file, np.array([evil], dtype=object), allow_pickle=True)
        elif container == "npz":
            np.savez(file, tokens=np.array([evil], dtype=object))
        else:
            file.write(header() + pickle.dumps(evil))
    for read in (lambda: [read_header(path)], lambda: foreign.read(path, **GPT2)):
        try:
            for shard in read():
                shard.open()
        except ShardError as error:
            assert name in str(error)
    assert not trace.exists()
    pickle.loads(pickle.dumps(evil))
    assert trace.exists(), "the payload is one that would have run"
