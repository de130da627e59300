"""How numbers are worded."""

import pytest

from plots import text
from results.stats import Effect


@pytest.mark.parametrize(("value", "words"), [(3.14159, "3.14"), (640.2, "640"), (1907, "1,907"), (39_350, "39.4k"),
                                              (384_112, "384k"), (1_450_000, "1.45M")])  # fmt: skip
def test_tokens(value, words):
    assert text.tokens(value) == words


@pytest.mark.parametrize(("ratio", "words"), [(1.063, "+6.3 %"), (0.971, "−2.9 %"), (1.7, "+70 %"), (2.16, "2.16×"),
                                              (12.34, "12.3×"), (0.5, "−50 %"), (1.0, "+0.0 %")])  # fmt: skip
def test_change(ratio, words):
    assert text.change(ratio) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.534, "53 %"), (0.0341, "3.4 %"), (0.0996, "10 %"), (0.0003, "0.03 %"), (0.0, "0.0 %")]
)
def test_share(value, words):
    assert text.share(value) == words


def test_half_width_is_of_the_interval():
    assert text.half_width(Effect(ratio=2.0, low=2.0 / 1.05, high=2.0 * 1.05, n=5)) == "± 5.0 %"
    assert text.half_width(Effect(ratio=2.0, low=None, high=None, n=1)) == "" and text.half_width(None) == ""


def test_memory_and_time():
    assert (text.gib(56.8 * 2**30), text.gib(940 * 2**20)) == ("56.8 GiB", "940 MiB")
    assert (text.seconds(42e3), text.seconds(3210), text.seconds(40)) == ("42 s", "3.2 s", "0.04 s")
