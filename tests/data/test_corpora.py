import hashlib
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import corpora, stdlib
from data.corpora import CORPORA, TextFiles, corpus, training_bytes, validation_names

SHAKESPEARE = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 40


def split_texts(source, raw=None) -> tuple[list[str], list[str]]:
    return tuple(list(source.documents(raw, split)) for split in ("train", "val"))


def test_corpora_have_names():
    assert list(CORPORA) == ["stdlib", "tinyshakespeare", "tinystories", "fineweb-edu-10b"]
    assert all(corpus(name) is CORPORA[name] and CORPORA[name].name == name for name in CORPORA)


@pytest.mark.parametrize(("given", "near"), [("tinystory", "tinystories"), ("shakespeare", "tinyshakespeare")])
def test_an_unknown_name_is_refused_with_the_nearest(given, near):
    with pytest.raises(ValueError, match=f"no corpus and no file '{given}': did you mean '{near}'?"):
        corpus(given)


def test_the_library_is_split_by_module():
    source = corpus("stdlib")
    source.fetch(None)
    docs = dict(stdlib.documents())
    train, val = ("".join(texts) for texts in split_texts(source))
    assert len(train) + len(val) == sum(map(len, docs.values()))
    assert 0.002 < len(val) / len(train) < 0.1
    names = validation_names(docs)
    assert val == "".join(text for name, text in docs.items() if name in names)
    assert source.version(None) == stdlib.version(stdlib.documents())


def test_what_is_validated_depends_on_names_alone():
    names = [f"folder/{i}.txt" for i in range(5000)]
    val = validation_names(names)
    assert 70 < len(val) < 130
    assert val == validation_names(reversed(names)) and validation_names(names[:2500]) == val & set(names[:2500])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
def test_of_few_documents_one_is_validated_and_never_all(count):
    for seed in range(50):
        names = [f"{seed}-{i}" for i in range(count)]
        assert len(validation_names(names)) == (1 if count > 1 else 0)


def test_even_if_chance_puts_all_names_into_validation(monkeypatch):
    monkeypatch.setattr(corpora, "VALIDATION_SHARE", 1.0)
    assert len(validation_names(["a", "b", "c"])) == 2


def test_one_text_is_split_at_nine_tenths(tmp_path):
    path = tmp_path / "Shakespeare, William.txt"
    path.write_text(SHAKESPEARE)
    source = corpus(path)
    assert source.name == "shakespeare-william"
    (train,), (val,) = split_texts(source)
    assert train + val == SHAKESPEARE and len(train) == int(len(SHAKESPEARE) * 0.9)
    assert [piece.ends for split in ("train", "val") for piece in source.pieces(None, split)] == [True, True]


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=2))
def test_the_split_of_one_text_never_cuts_a_character(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "one.txt"
    path.write_bytes(text.encode())
    middle = training_bytes(path)
    train, val = split_texts(TextFiles(name="one", path=path))
    assert "".join(train + val) == text and train and val
    assert 0 <= int(len(text.encode()) * 0.9) - middle < 4


@pytest.mark.parametrize("content", ["", "x", "é"])
def test_a_text_too_small_to_split_is_refused(tmp_path, content):
    path = tmp_path / "small.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match="small.txt has . bytes, too few"):
        split_texts(corpus(path))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "My Books"
    for name, text in {"b.txt": "bee\n", "a/deep/c.md": "sea\r\n", "a.txt": "é", "empty.txt": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    for hidden in (".hidden.txt", ".git/objects", "a/.DS_Store"):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_bytes(b"\xff\xfe\x00")
    return root


def test_a_folder_has_a_document_for_every_file_in_it(folder):
    source = corpus(folder)
    assert source.name == "my-books"
    assert [name for name, _ in source.files(None)] == ["a.txt", "a/deep/c.md", "b.txt"]
    train, val = split_texts(source)
    assert sorted(train + val) == ["bee\n", "sea\r\n", "é"] and len(val) == 1
    assert all(piece.ends for piece in source.pieces(None, "train"))


def test_a_folder_with_one_text_is_split_like_one_text(tmp_path):
    (tmp_path / "only.txt").write_text(SHAKESPEARE)
    assert split_texts(corpus(tmp_path)) == split_texts(corpus(tmp_path / "only.txt"))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no text"):
        split_texts(corpus(tmp_path))


def test_a_picture_among_the_texts_is_refused_by_name_before_the_work(folder):
    (folder / "cover.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"cover.png is not UTF-8 text .*take it away"):
        corpus(folder).version(None)


def test_a_version_follows_content_and_names(folder):
    versions = [corpus(folder).version(None)]
    assert corpus(folder).version(None) == versions[0] and len(versions[0]) == 8
    for change in (
        lambda: (folder / "b.txt").write_text("Bee\n"),
        lambda: (folder / "b.txt").rename(folder / "d.txt"),
        lambda: (folder / "e.txt").write_text("e"),
        lambda: (folder / "a.txt").unlink(),
    ):
        change()
        versions.append(corpus(folder).version(None))
    assert len(set(versions)) == len(versions)
    (folder / ".more").write_text("hidden")
    assert corpus(folder).version(None) == versions[-1]


@pytest.mark.parametrize("name", ["stdlib.txt", "raw", "tokenizers.md", "TinyStories.txt"])
def test_a_users_text_does_not_take_a_folder_that_means_something_else(tmp_path, name):
    path = tmp_path / name
    path.write_text(SHAKESPEARE)
    assert corpus(path).name == name.split(".")[0].lower() + "-text"


@pytest.mark.parametrize(("name", "called"), [("東京.txt", "text"), ("..a b..txt", "a-b"), ("-x-.txt", "x")])
def test_names_of_folders_are_plain(tmp_path, name, called):
    path = tmp_path / name
    path.write_text(SHAKESPEARE)
    assert corpus(path).name == called


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_file_names_need_not_be_utf8(folder):
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("coffee")
    assert "coffee" in sum(split_texts(corpus(folder)), []) and corpus(folder).version(None)


def test_a_place_that_is_no_file_is_no_corpus(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no corpus and no file"):
        corpus(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no corpus and no file"):
        corpus(tmp_path / "missing.txt")


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Tiny Shakespeare, tinier."""
    content = SHAKESPEARE.encode()
    path = tmp_path / "raw" / "tinyshakespeare" / "input.txt"
    source = corpora.TinyShakespeare(sha256=hashlib.sha256(content).hexdigest(), url="https://example.org/input.txt")
    return source, path, content


def test_a_file_placed_by_hand_is_used(play, monkeypatch):
    source, path, content = play
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    raw = path.parent.parent
    source.fetch(raw)
    (train,), (val,) = split_texts(source, raw)
    assert train + val == SHAKESPEARE and len(train) == int(len(SHAKESPEARE) * 0.9)
    assert len(source.version(raw)) == 8


def test_another_file_placed_by_hand_is_refused_and_kept(play):
    source, path, content = play
    path.parent.mkdir(parents=True)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"input.txt is not tinyshakespeare: its SHA-256 is not .*put the right file"):
        source.fetch(path.parent.parent)
    assert path.read_bytes() == content[:-1]


def test_a_missing_file_is_downloaded_to_its_place(play, monkeypatch):
    source, path, content = play
    calls = []

    def download(url, place, *, sha256, progress):
        calls.append((url, place, sha256, progress))
        place.parent.mkdir(parents=True)
        place.write_bytes(content)

    monkeypatch.setattr(corpora, "download", download)
    source.fetch(path.parent.parent, print)
    assert calls == [("https://example.org/input.txt", path, source.sha256, print)]


def test_the_real_one_is_the_well_known_file():
    source = corpus("tinyshakespeare")
    assert source.url.startswith("https://raw.githubusercontent.com/karpathy/char-rnn/")
    assert source.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
