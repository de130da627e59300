"""The terminal's tables say what the record says, in any width."""

import io

import pytest
from rich.console import Console

from plots import table
from plots import text as words_for
from results import analysis
from tests.factories import make_record


def printed(thing, width=160):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(thing)
    return console.file.getvalue()


def test_every_rung_with_its_numbers():
    record = make_record("h100")
    text = printed(table.ladder_table(record))
    for row in analysis.rows(record):
        line = next(line for line in text.splitlines() if line.strip().startswith(row.title))
        for words in (
            words_for.share(row.mfu_full),
            words_for.tokens(row.tokens_per_second.value),
            words_for.gib(row.peak_memory_bytes),
        ):
            assert words in line
    assert "slower −" in text and "no difference" in text and "faster" in text and "noise floor" in text


def test_failures_and_skips_have_a_note_with_the_reason():
    text = printed(table.ladder_table(make_record("cpu", statuses={"compile": ("crashed", "no g++ [see log]")})))
    assert "TF32 matmuls [1]" in text and "[1] skipped: needs an NVIDIA GPU" in text
    assert "torch.compile [2]" in text and "[2] crashed: no g++ [see log]" in text
    assert "MFU" not in text  # no peak is known, so no column


def test_a_quick_record_says_what_indicative_means():
    text = printed(table.ladder_table(make_record("cpu", trials=1)))
    assert "indicative +67 %" in text and "Indicative: one trial" in text and "faster" not in text


@pytest.mark.parametrize(
    ("derivation", "words"),
    [
        ("single", "FlashAttention"),
        ("leave-one-out", "without FlashAttention"),
        ("choices", "with MLP kernels"),
        ("scaling", "2 processes"),
    ],
)
def test_the_other_ladders(derivation, words):
    text = printed(table.ladder_table(make_record("h100", processes=(1, 2)), derivation))
    assert words in text and ("over all" in text) == (derivation in ("leave-one-out", "choices"))


def test_a_derivation_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="this record has cumulative"):
        table.ladder_table(make_record("cpu", derivations=("cumulative",)), "scaling")


def test_a_record_with_nothing_measured():
    record = make_record(
        "cpu", statuses={"": ("not run", "interrupted")}, status="partial", derivations=("cumulative",)
    )
    assert "not run: interrupted" in printed(table.ladder_table(record))


def test_a_narrow_terminal_goes_without_columns_and_says_so():
    text = printed(table.ladder_table(make_record("h100"), width=80), width=80)
    assert max(map(len, text.splitlines())) <= 80 and "Left out" in text and "…" not in text
    assert all(f"{row.title} " in text for row in analysis.rows(make_record("h100")))


def test_compare_names_what_differs():
    a = make_record("h100", derivations=("cumulative",))
    b = make_record("h100", seed=1, derivations=("single",), environment=a.environment | {"torch": "2.12.0"})
    text = printed(table.compare_table(a, b))
    assert (
        "differs: torch: 2.13.0 against 2.12.0" in text
        and "only in the first record" in text
        and "no difference" in text
    )
