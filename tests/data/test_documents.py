import tracemalloc
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import documents, stdlib, tokenizers
from data.documents import Corpus, check_split, cut, read_text

LINES = st.lists(st.text(alphabet="ab \n\r\u2028é東", max_size=12), max_size=12)


@settings(deadline=None)
@given(parts=LINES, size=st.integers(2, 20))
def test_pieces_joined_are_the_document_and_only_the_last_ends_it(parts, size):
    with patch.object(documents, "PIECE", size):
        pieces = list(cut(parts))
    assert "".join(piece.text for piece in pieces) == "".join(parts)
    assert all(0 < len(piece.text) <= size for piece in pieces)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)


@settings(deadline=None)
@given(
    text=st.text(alphabet="ab \n", max_size=60),
    size=st.integers(2, 20),
    widths=st.lists(st.integers(1, 9), max_size=9),
)
@example(text="aaa\naaa", size=3, widths=[4])
def test_how_a_document_arrives_does_not_change_its_pieces(text, size, widths):
    parts, rest = [], text
    for width in widths:
        parts.append(rest[:width])
        rest = rest[width:]
    with patch.object(documents, "PIECE", size):
        assert list(cut([*parts, rest])) == list(cut([text]))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two  three four", ["one two", "  three", " four"]),
        ("one\ntwo\nthree", ["one\ntwo\n", "three"]),
        ("two\n\n  three", ["two\n\n  thr", "ee"]),
        ("0123456789abcdefghij", ["0123456789", "abcdefghij"]),
        ("東京都。\n東京都東京都東京都", ["東京都。\n", "東京都東京都東京都"]),
    ],
)
def test_a_cut_is_where_no_token_spans(text, pieces):
    with patch.object(documents, "PIECE", 10):
        assert [piece.text for piece in cut([text])] == pieces


def test_a_place_to_cut_is_looked_for_in_all_of_a_piece():
    text = "one two" + "x" * 5000
    with patch.object(documents, "PIECE", 5000):
        assert [piece.text for piece in cut([text])] == ["one", " two" + "x" * 4996, "xxxx"]


@pytest.mark.parametrize("make", ["rustbpe", "hf", "gpt2"])
def test_pieces_have_the_ids_of_the_whole(make):
    text = max((text for _, text in stdlib.documents() if "\r" not in text), key=len)
    if make == "gpt2":
        if not tokenizers.gpt2_at_hand():
            pytest.skip("GPT-2's files are not in tiktoken's cache")
        tokenizer = tokenizers.gpt2()
    else:
        pytest.importorskip({"rustbpe": "rustbpe", "hf": "tokenizers"}[make])
        tokenizer = {"rustbpe": tokenizers.train_rustbpe, "hf": tokenizers.train_hf}[make](iter([text]), 400)
    with patch.object(documents, "PIECE", 5000):
        pieces = [piece.text for piece in cut([text])]
    assert len(pieces) > 20
    (ids,) = tokenizer.encode([text])
    assert sum(tokenizer.encode(pieces), []) == ids


def test_text_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    text = "\ufeffone\r\ntwo\rthree\n東京 🎉" * 7
    path.write_bytes(text.encode())
    with patch.object(documents, "PIECE", 5):
        assert "".join(read_text(path)) == text
    start = len("\ufeffone".encode())
    assert "".join(read_text(path, start=start, end=start + 5)) == "\r\ntwo"
    assert "".join(read_text(path, start=len(text.encode()))) == ""


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"\xff\xfea\x00", "byte 0 is 0xff"),
        (b"0123456789\xe9 caf", "byte 10 is 0xe9"),
        (b"abc\xf0\x9f\x8e", "byte 3 is 0xf0"),
    ],
    ids=["UTF-16", "Latin-1", "cut off"],
)
def test_other_encodings_are_refused_by_name_and_place(tmp_path, content, place):
    path = tmp_path / "old.txt"
    path.write_bytes(content)
    with patch.object(documents, "PIECE", 4), pytest.raises(ValueError, match=f"old.txt is not UTF-8 text .{place}"):
        list(read_text(path))


def test_a_long_text_is_never_in_memory_as_a_whole(tmp_path):
    path = tmp_path / "long.txt"
    path.write_bytes(b"a line of text like any other\n" * 1_000_000)
    tracemalloc.start()
    total = sum(len(piece.text) for piece in cut(read_text(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 30_000_000 and peak < 4_000_000


def test_there_are_two_splits():
    with pytest.raises(ValueError, match="split is 'test'; it must be 'train' or 'val'"):
        check_split("test")


def test_documents_are_the_texts_of_the_pieces():
    class Two(Corpus):
        def pieces(self, raw, split):
            yield from cut([f"{split} one"])
            yield from cut([f"{split} two"])

    assert list(Two(name="two").documents(None, "val")) == ["val one", "val two"]
