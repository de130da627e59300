import hashlib
import random
import sys

import pytest

from data import stdlib, tokenizers

CORPUS = [text for _, text in stdlib.documents()[:25]]
TEXTS = [
    "",
    "hello world",
    "def f(x):\n\treturn  x  # naïve – 東京 🎉\r\n\r\n    \u00a0",
    "<|endoftext|> is only text here",
    "\x00\x01\x7f \u2028 e\u0301 \ufeff 👩\u200d🚀",
    "12345678 3.14 it's WE'LL",
    "".join(random.Random(0).choices([chr(c) for c in [*range(0x20, 0x250), *range(0x4E00, 0x4F00), 0x1F600]], k=2000)),
]


def rustbpe(size: int = 400):
    pytest.importorskip("rustbpe")
    pytest.importorskip("tiktoken")
    return tokenizers.train_rustbpe(iter(CORPUS), size)


def hf(size: int = 400):
    pytest.importorskip("tokenizers")
    return tokenizers.train_hf(iter(CORPUS), size)


def gpt2(size: int = 50257):
    if not tokenizers.gpt2_at_hand():
        pytest.skip("GPT-2's files are not in tiktoken's cache")
    return tokenizers.gpt2()


@pytest.mark.parametrize("make", [rustbpe, hf, gpt2, tokenizers.ByteTokenizer], ids=["rustbpe", "hf", "gpt2", "bytes"])
def test_any_text_comes_back_and_ids_stay_in_range(make):
    tokenizer = make()
    encoded = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(ids) for ids in encoded] == TEXTS
    assert all(0 <= i < tokenizer.vocab_size for ids in encoded for i in ids)
    if tokenizer.name != "bytes":
        assert 0 <= tokenizer.eot < tokenizer.vocab_size
        assert all(tokenizer.eot not in ids for ids in encoded), "a mark written in a text is text"
        assert sum(map(len, tokenizer.encode(CORPUS))) < 0.6 * sum(len(text.encode()) for text in CORPUS)


@pytest.mark.parametrize("make", [rustbpe, hf], ids=["rustbpe", "hf"])
def test_training_is_deterministic_and_has_the_size_asked_for(make):
    first, again, other = make(400), make(400), make(401)
    assert first.vocab_size == 400 and other.vocab_size == 401
    assert first.sha256 == again.sha256 != other.sha256
    assert first.encode(TEXTS) == again.encode(TEXTS)
    assert first.name == again.name and "400" in first.name


def test_the_two_libraries_agree_on_how_much_they_compress():
    counts = [sum(map(len, tokenizer.encode(CORPUS))) for tokenizer in (rustbpe(1000), hf(1000))]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_bytes_are_utf8():
    tokenizer = tokenizers.ByteTokenizer()
    assert tokenizer.encode(["é\n"]) == [[0xC3, 0xA9, 10]]
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert tokenizer.vocab_size == 256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A tiktoken cache with two small files in the place of GPT-2's."""
    monkeypatch.setitem(sys.modules, "tiktoken", sys.modules.get("tiktoken", sys))
    files = {f"https://example.invalid/{name}": name.encode() for name in ("vocab.bpe", "encoder.json")}
    monkeypatch.setattr(
        tokenizers, "GPT2_FILES", {address: hashlib.sha256(content).hexdigest() for address, content in files.items()}
    )
    paths = []
    for address, content in files.items():
        paths.append(tmp_path / hashlib.sha1(address.encode()).hexdigest())
        paths[-1].write_bytes(content)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr(tokenizers.tempfile, "tempdir", str(tmp_path / "nothing here"))
    return paths


def test_gpt2_is_at_hand_only_with_both_files_whole(cache, monkeypatch):
    assert not tokenizers.gpt2_at_hand()
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(cache[0].parent))
    assert tokenizers.gpt2_at_hand()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache[0].parent / "empty"))  # wins over the other
    assert not tokenizers.gpt2_at_hand()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache[0].parent))
    assert tokenizers.gpt2_at_hand()
    cache[1].write_bytes(b"damaged")
    assert not tokenizers.gpt2_at_hand()
    assert cache[1].read_bytes() == b"damaged", "looking must not touch the cache"
    cache[1].unlink()
    assert not tokenizers.gpt2_at_hand()
    with pytest.raises(ValueError, match="TIKTOKEN_CACHE_DIR"):
        tokenizers.gpt2()


def test_tiktokens_own_folder_is_looked_at_too(cache, monkeypatch, tmp_path):
    folder = tmp_path / "nothing here" / "data-gym-cache"
    folder.mkdir(parents=True)
    for path in cache:
        path.rename(folder / path.name)
    assert tokenizers.gpt2_at_hand()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken would then use no cache at all
    assert not tokenizers.gpt2_at_hand()
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert not tokenizers.gpt2_at_hand()


def test_gpt2_is_gpt2(monkeypatch):
    if not tokenizers.gpt2_at_hand():
        pytest.skip("GPT-2's files are not in tiktoken's cache")
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    tokenizer = tokenizers.gpt2()
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eot) == ("gpt2", 50257, 50256)
    assert tokenizer.encode(["Hello world"]) == [[15496, 995]]


@pytest.fixture
def present(monkeypatch):
    def install(*packages: str, gpt2: bool = False) -> None:
        monkeypatch.setattr(tokenizers, "installed", lambda package: package in packages)
        monkeypatch.setattr(tokenizers, "gpt2_at_hand", lambda: gpt2)

    return install


@pytest.mark.parametrize(
    ("vocab_size", "packages", "with_gpt2", "name"),
    [
        (50257, ("tiktoken", "rustbpe", "tokenizers"), True, "gpt2"),
        (50304, ("tiktoken",), True, "gpt2"),
        (50256, ("tiktoken", "rustbpe", "tokenizers"), True, "rustbpe-8192"),
        (50257, ("tiktoken", "rustbpe", "tokenizers"), False, "rustbpe-8192"),
        (300, ("tiktoken", "rustbpe"), False, "rustbpe-300"),
        (50257, ("rustbpe", "tokenizers"), False, "hf-bpe-8192"),
        (50257, ("tiktoken", "tokenizers"), False, "hf-bpe-8192"),
        (300, ("tokenizers",), False, "hf-bpe-300"),
        (50257, ("rustbpe",), False, "bytes"),
        (257, (), False, "bytes"),
    ],
)
def test_the_best_tokenizer_at_hand_is_chosen(present, vocab_size, packages, with_gpt2, name):
    present(*packages, gpt2=with_gpt2)
    assert tokenizers.choose(vocab_size)[0] == name


@pytest.mark.parametrize("packages", [(), ("tokenizers",), ("tiktoken", "rustbpe")])
def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(present, packages):
    present(*packages)
    with pytest.raises(ValueError, match="vocab_size is 256; it must be at least 257"):
        tokenizers.choose(256)


def test_installed_sees_what_cannot_be_imported(monkeypatch):
    assert tokenizers.installed("numpy") and not tokenizers.installed("no_such_package_anywhere")
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert not tokenizers.installed("numpy")
