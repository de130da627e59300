"""R7, R9, R11, R15 for saved tokenizers: no damage goes unnoticed, nothing in a file is run, no file takes long."""

import functools
import hashlib
import io
import json
import os
import pickle
import random
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import stdlib, tokenizers
from data.bpe import from_ranks
from data.tokenizer_files import LARGEST_FILE, TokenizerError, from_json, load, save, to_bytes

KINDS = ["bytes", "char", "rustbpe", "hf-bpe", "gpt2"]
TEXT = "def f(x):\n\treturn x  # naïve – 東京 🎉"


@functools.cache
def make(kind: str):
    texts = [*(text for _, text in stdlib.documents()[:5]), TEXT]
    match kind:
        case "bytes":
            return tokenizers.ByteTokenizer()
        case "char":
            return tokenizers.train_characters(texts)
        case "rustbpe":
            pytest.importorskip("rustbpe")
            pytest.importorskip("tiktoken")
            return tokenizers.train_rustbpe(iter(texts), 300)
        case "hf-bpe":
            pytest.importorskip("tokenizers")
            return tokenizers.train_hf(iter(texts), 300)
        case "gpt2":
            if not tokenizers.gpt2_at_hand():
                pytest.skip("GPT-2's files are not in tiktoken's cache")
            return tokenizers.gpt2()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back(tmp_path, kind):
    tokenizer, path = make(kind), tmp_path / "new" / "tokenizer.json"
    save(tokenizer, path)
    again = load(path)
    for field in ("name", "vocab_size", "eot", "sha256"):
        assert getattr(again, field) == getattr(tokenizer, field)
    ids = tokenizer.encode([TEXT])
    assert again.encode([TEXT]) == ids and again.decode(ids[0]) == TEXT
    assert path.read_bytes() == to_bytes(again)
    assert json.loads(path.read_text())["kind"] == kind
    save(again, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["tokenizer.json"]


def test_a_file_holds_what_a_reader_would_look_for(tmp_path):
    save(tokenizers.CharacterTokenizer(name="abc", characters="\nab"), tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    checksum = data.pop("checksum")
    assert data == {
        "format": "stepladder tokenizer 1",
        "name": "abc",
        "vocab_size": 3,
        "eot": 0,
        "sha256": tokenizers.CharacterTokenizer(characters="\nab").sha256,
        "kind": "char",
        "characters": [10, 97, 98],
    }
    assert len(checksum) == 64


def test_gpt2_loads_only_where_its_files_are(tmp_path, monkeypatch):
    save(make("gpt2"), tmp_path / "gpt2.json")
    assert (tmp_path / "gpt2.json").stat().st_size < 1000
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(TokenizerError, match="gpt2.json: .*point TIKTOKEN_CACHE_DIR at a copy"):
        load(tmp_path / "gpt2.json")


@pytest.mark.parametrize(("kind", "package"), [("rustbpe", "tiktoken"), ("hf-bpe", "tokenizers")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, kind, package):
    save(make(kind), tmp_path / "a.json")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TokenizerError, match=f"a.json: a tokenizer of kind {kind} needs .*: pip install {package}"):
        load(tmp_path / "a.json")


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Flips a bit, or zeroes, swaps, deletes, doubles or cuts off a stretch; never gives the same bytes back."""
    while True:
        place, length = chance.randrange(len(content)), chance.choice([1, 1, 2, 8, 64])
        stretch, other = content[place : place + length], chance.randrange(len(content))
        mutated = chance.choice(
            [
                lambda: content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :],
                lambda: content[:place] + bytes(len(stretch)) + content[place + length :],
                lambda: content[:place] + content[other : other + len(stretch)] + content[place + length :],
                lambda: content[:place] + content[place + length :],
                lambda: content[:place] + stretch + content[place:],
                lambda: content[:place],
            ]
        )()
        if mutated != content:
            return mutated


def check_mutations(tmp_path, kind: str, count: int) -> None:
    path, chance = tmp_path / "mutant.json", random.Random(kind)
    content = to_bytes(make(kind))
    for number in range(count):
        path.write_bytes(mutate(content, chance))
        with pytest.raises(TokenizerError, match="mutant.json: ") as caught:
            load(path)
            pytest.fail(f"mutation {number} went unnoticed")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_60_mutations_are_all_noticed(tmp_path, kind):
    check_mutations(tmp_path, kind, 60)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_1000_mutations_are_all_noticed(tmp_path, kind):
    check_mutations(tmp_path, kind, 1000)


def test_damage_is_called_damage(tmp_path):
    path = tmp_path / "a.json"
    content = to_bytes(make("char"))
    path.write_bytes(content.replace(b'"char"', b'"chat"', 1))
    with pytest.raises(TokenizerError, match="a.json: is damaged: its content does not match its checksum"):
        load(path)
    path.write_bytes(content[:-1])
    with pytest.raises(TokenizerError, match="a.json: is not a saved tokenizer, or only part of one"):
        load(path)


def seal(data) -> bytes:
    """A file of any content whose checksum holds: what a careful forger would write."""
    head = json.dumps(data, indent=1).removesuffix("\n}").encode()
    return head + b',\n "checksum": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode()


def fields(kind: str, /, **changes) -> dict:
    data = json.loads(to_bytes(make(kind)))
    del data["checksum"]
    return {**data, **changes}


FORGERIES = [
    ("char", {"sha256": "0" * 64}, "what it says of itself"),
    ("char", {"vocab_size": 1}, "what it says of itself"),
    ("char", {"eot": 99}, "what it says of itself"),
    ("char", {"more": 1}, "what it says of itself"),
    ("char", {"name": "../../etc/passwd"}, "its name"),
    ("char", {"name": 7}, "its name"),
    ("char", {"format": "stepladder tokenizer 2"}, "format"),
    ("char", {"kind": "pickle"}, "its kind"),
    ("char", {"kind": ["char"]}, "its kind"),
    ("char", {"kind": None}, "its kind"),
    ("char", {"characters": "abc"}, "not a list of int"),
    ("char", {"characters": [97.0]}, "not a list of int"),
    ("char", {"characters": [True]}, "not a list of int"),
    ("char", {"characters": []}, "are none"),
    ("char", {"characters": [98, 97]}, "not sorted"),
    ("char", {"characters": [97, 97]}, "each there once"),
    ("char", {"characters": [-1, 97]}, "Unicode"),
    ("char", {"characters": [97, 0xD800]}, "Unicode"),
    ("char", {"characters": [97, 0x110000]}, "Unicode"),
    ("char", {"characters": [97, 10**30]}, "Unicode"),
    ("rustbpe", {"pattern": "(a+)+$"}, "what it says of itself"),
    ("rustbpe", {"tokens": ["00"]}, "first 256"),
    ("rustbpe", {"tokens": ["zz"]}, "fromhex"),
    ("rustbpe", {"tokens": [0]}, "not a list of str"),
    ("hf-bpe", {"merges": [0, 1]}, "not ids before it"),
    ("hf-bpe", {"merges": [1]}, ""),
    ("hf-bpe", {"merges": "1 2"}, "not a list of int"),
    ("gpt2", {"vocab_size": 50304}, "what it says of itself"),
    ("gpt2", {"sha256": "0" * 64}, "what it says of itself"),
]


@pytest.mark.parametrize(("kind", "changes", "reason"), FORGERIES, ids=[f"{k}-{c}"[:50] for k, c, _ in FORGERIES])
def test_a_checksum_alone_does_not_make_a_tokenizer(tmp_path, kind, changes, reason):
    path = tmp_path / "forged.json"
    path.write_bytes(seal(fields(kind)))
    assert load(path).sha256 == make(kind).sha256, "without a change it is good"
    path.write_bytes(seal(fields(kind, **changes)))
    with pytest.raises(TokenizerError, match=f"forged.json: .*{reason}"):
        load(path)


@settings(deadline=None)
@given(
    data=st.dictionaries(
        st.sampled_from(["kind", "name", "characters", "tokens", "merges", "format"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers() | st.text())
        | st.sampled_from(["char", "bytes", "rustbpe", "hf-bpe", "a-name"]),
    )
)
def test_any_content_gives_a_tokenizer_or_our_own_error(data):
    try:
        tokenizer = from_json(data)
    except ValueError:
        return
    assert tokenizer.vocab_size > tokenizer.eot >= 0


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="any.json: "):
        load(path)


class Payload:
    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def containers(payload: Payload) -> dict[str, bytes]:
    pickled = pickle.dumps(payload)
    archive, array = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickled)
    np.save(array, np.array([payload], dtype=object), allow_pickle=True)
    inside = seal(fields("char", characters=pickled.hex()))
    return {"pickle": pickled, "zip as torch has it": archive.getvalue(), "npy": array.getvalue(), "json": inside}


@pytest.mark.parametrize("container", ["pickle", "zip as torch has it", "npy", "json"])
def test_nothing_in_a_file_is_run(tmp_path, container):
    marker, path = tmp_path / "it was run", tmp_path / "evil.json"
    path.write_bytes(containers(Payload(marker))[container])
    with pytest.raises(TokenizerError, match="evil.json: "):
        load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists(), "the payload itself must work, or the test proves nothing"


def test_links_pipes_folders_and_devices_are_refused_at_once(tmp_path):
    save(make("bytes"), tmp_path / "good.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "good.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("link", "zero", "folder", "pipe"):
        with pytest.raises(TokenizerError, match=f"{name}.json: is not a plain file"):
            load(tmp_path / f"{name}.json")
    with pytest.raises(TokenizerError, match="/dev/zero: is not a plain file"):
        load("/dev/zero")


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "huge.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(type(path), "read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(TokenizerError, match="huge.json: has 1,099,511,627,776 bytes"):
        load(path)


ROOM = LARGEST_FILE - 200
BOMBS = {
    "deep": b"[" * ROOM,
    "wide": b"[" + b"[]," * (ROOM // 3) + b"[]]",
    "objects": b"[" + b"{}," * (ROOM // 3) + b"{}]",
    "strings": b"[" + b",".join(b'"%x"' % i for i in range(ROOM // 9)) + b"]",
    "integers": b"[" + b",".join(b"%d" % (1000 + i) for i in range(ROOM // 8)) + b"]",
    "digits": b"9" * ROOM,
    "escapes": b'"' + b"\\ud83d\\ude00" * (ROOM // 12) + b'"',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused_within_a_second_and_200_mb(tmp_path, bomb):
    path = tmp_path / "bomb.json"
    head = b'{"format": "stepladder tokenizer 1", "kind": "char", "name": "x", "characters": ' + bomb
    path.write_bytes(head + b',\n "checksum": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode())
    assert path.stat().st_size <= LARGEST_FILE
    began = time.process_time()
    with pytest.raises(TokenizerError, match="bomb.json: "):
        load(path)
    assert time.process_time() - began < 1
    tracemalloc.start()
    with pytest.raises(TokenizerError, match="bomb.json: "):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000_000


def test_lists_within_lists_are_not_even_parsed(tmp_path, monkeypatch):
    content = seal(fields("char", characters=[[1]] * 20))
    (tmp_path / "deep.json").write_bytes(content)
    monkeypatch.setattr(json, "loads", lambda *args: pytest.fail("it was parsed"))
    with pytest.raises(TokenizerError, match="deep.json: is not flat"):
        load(tmp_path / "deep.json")


def test_the_largest_vocabulary_fits_and_a_larger_is_not_written(tmp_path):
    pytest.importorskip("tiktoken")
    every_byte = [bytes([i]) for i in range(256)]
    words = [f"{i:08d}".encode() for i in range(tokenizers.LARGEST_VOCAB_SIZE - 257)]
    large = from_ranks([*every_byte, *words], "large")
    assert large.vocab_size == tokenizers.LARGEST_VOCAB_SIZE
    save(large, tmp_path / "large.json")
    assert load(tmp_path / "large.json").sha256 == large.sha256
    huge = tokenizers.CharacterTokenizer(characters="".join(map(chr, range(0xE000, 0x9E000))))
    with pytest.raises(TokenizerError, match="huge.json: would take .* bytes, more than .*; lower vocab_size"):
        save(huge, tmp_path / "huge.json")
    assert not (tmp_path / "huge.json").exists()
