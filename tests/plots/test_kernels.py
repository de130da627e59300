"""Charts, table and README section of a record of kernels say what the record says."""

import dataclasses
import io
import itertools

import pytest
from rich.console import Console

from plots import gallery, kernels, readme, style, text
from plots.kernel_table import kernel_table
from results import store
from results.kernels import problems
from results.schema import Step
from tests.factories import make_record
from tests.made_kernels import KERNELS, make_kernels_record

SIZE = "gpt2 64 × 1024"
HOLES = {
    "cross_entropy: forward: gpt2 64x1024: written-out": ("oom", "tried to allocate 25 GiB"),
    "cross_entropy: forward: gpt2 64x1024: library": ("wrong", "against float64, output 0 is off"),
    "cross_entropy: forward + backward: gpt2 8x1024: kernel": ("crashed", "an illegal memory access"),
}


def write(folder, *records):
    return [store.write(record, folder / "records") for record in records]


def texts(figure):
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def printed(thing, width=220):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(thing)
    return console.file.getvalue()


def drawn(record, kernel="cross_entropy"):
    with style.drawing():
        return kernels.draw(record, kernel)


def test_every_kernel_gets_a_chart_of_its_own(tmp_path):
    write(tmp_path, make_kernels_record(), make_record("h100", created_utc="2026-02-01T00:00:00Z"))
    files = gallery.draw(tmp_path / "records", tmp_path / "gallery")
    names = {f.stem for f in files if f.parent.name == "h100-sxm"}
    assert {"kernel-cross-entropy", "kernel-flash-attention", "ladder"} <= names
    assert gallery.stale(tmp_path / "records", tmp_path / "gallery") == []
    newer = make_kernels_record(seed=5, kernels=("cross_entropy",), created_utc="2026-03-01T00:00:00Z")
    write(tmp_path, newer)  # a kernel's newest record speaks for it, and for no other kernel
    reasons = gallery.stale(tmp_path / "records", tmp_path / "gallery")
    assert any("kernel-cross-entropy: the records changed" in r for r in reasons)
    assert not any("flash" in r or "ladder" in r for r in reasons)


def test_a_record_of_kernels_draws_no_ladder(tmp_path):
    write(tmp_path, make_kernels_record(kernels=("cross_entropy",)))
    files = gallery.draw(tmp_path / "records", tmp_path / "gallery")
    assert {f.name for f in files} == {"kernel-cross-entropy.png", "kernel-cross-entropy.svg"}


def test_the_chart_says_times_comparisons_rates_and_bound():
    record = make_kernels_record()
    words = texts(drawn(record))
    for problem in problems(record, "cross_entropy"):
        assert text.short_time(problem.ours.row.step_ms.value) in words
        compiled = problem.entry("compiled")
        assert f"{text.short_time(compiled.row.step_ms.value)} ({text.times(compiled.ours_over.ratio)})" in words
        assert f"{problem.ours.gigabytes_per_second:,.0f} GB/s" in words
    assert {"forward", "forward + backward", "our kernel", "torch.compile"} <= set(words)
    assert "share of the bound: copying at 3,000 GB/s" in words
    assert any("NVIDIA H100 80GB HBM3 · each kernel by itself, from cold caches" in w for w in words)
    assert any("noise floor" in w and "012345678" in w for w in words)
    attention = texts(drawn(record, "flash_attention"))
    assert "share of the bound: products at 750 TFLOP/s" in attention and any(w.endswith("TFLOP/s") for w in attention)
    assert any(w.endswith(" (=)") for w in attention)  # cuDNN is as fast as ours


def test_bars_are_as_high_as_the_share():
    record = make_kernels_record()
    forward = [p for p in problems(record, "cross_entropy") if p.direction == "forward"]
    expected = sorted(e.row.roofline_share for p in forward for e in p.entries)
    heights = sorted(bar.get_height() for bar in drawn(record).axes[0].patches)
    assert heights == pytest.approx(expected) and max(heights) < 1.0


def test_what_failed_and_what_lost_stands_out():
    title, ways, sizes = KERNELS["cross_entropy"]
    slower = {**ways, "kernel": ("our kernel", 0.4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KERNELS, "cross_entropy", (title, slower, sizes))
        record = make_kernels_record(statuses=HOLES, kernels=("cross_entropy",))
    figure = drawn(record)
    shown = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    coloured = {t.get_text() for t in shown if t.get_color() == style.VERMILLION}
    assert {"oom", "wrong", "crashed"} <= coloured and any("(0.7" in words for words in coloured)
    table = printed(kernel_table(record, "cross_entropy"))
    assert "oom [1]" in table and "[1] oom: tried to allocate 25 GiB" in table and "wrong: against float64" in table


@pytest.mark.parametrize(
    "record",
    [
        make_kernels_record(),
        make_kernels_record(trials=1),
        make_kernels_record(statuses=HOLES),
        make_kernels_record(status="partial"),
    ],
    ids=["full", "quick", "holes", "partial"],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_two_texts_overlap_and_none_leaves_the_picture(record, kernel):
    record.derivations[kernel].append(
        Step(label="x", title="SDPA, cuDNN", measurement=None, previous=None, skipped="needs cuDNN 9 or newer")
    )
    figure = drawn(record, kernel)
    record.derivations[kernel].pop()
    figure.canvas.draw()
    shown = [t for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text().strip() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown]
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        overlap = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(overlap) <= 0.5 or a == b, f"{a!r} overlaps {b!r}"
    for words, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, words
    assert any(words.startswith("Left out: SDPA, cuDNN") for words, _ in boxes)


def test_a_quick_records_bars_are_hollow():
    bars = drawn(make_kernels_record(trials=1)).axes[0].patches
    assert {bar.get_facecolor()[:3] for bar in bars} == {(1.0, 1.0, 1.0)}


def test_without_peaks_there_is_no_chart_but_a_table():
    record = dataclasses.replace(make_kernels_record(), peaks={"datasheet": None, "measured": None})
    assert drawn(record) is None and drawn(make_kernels_record(), "adamw") is None
    table = printed(kernel_table(record, "cross_entropy"))
    assert "F.cross_entropy" in table and "ms (" in table


def test_a_narrow_terminal_is_told_what_it_misses():
    table = printed(kernel_table(make_kernels_record(), "flash_attention", width=110), width=110)
    assert "Left out, for 110 characters are too few: written out, ours reaches, memory." in " ".join(table.split())


def test_a_column_that_is_left_out_takes_its_notes_with_it():
    record = make_kernels_record(statuses=HOLES)
    assert "[1] oom: tried to allocate 25 GiB" in printed(kernel_table(record, "cross_entropy"))
    table = printed(kernel_table(record, "cross_entropy", width=110), width=110)
    assert "too few: written out" in table and "oom" not in table and "[1] wrong: against float64" in table


def test_the_readme_shows_each_direction_on_its_largest_problem(tmp_path):
    (tmp_path / "README.md").write_text("<!-- generated:kernels -->\n<!-- /generated -->\n")
    readme.update(tmp_path / "README.md", tmp_path / "records", tmp_path / "gallery")
    assert "`pytest --benchmark --suite kernels` measures" in (tmp_path / "README.md").read_text()
    record = make_kernels_record()
    write(tmp_path, record, make_record("h100"))
    readme.update(tmp_path / "README.md", tmp_path / "records", tmp_path / "gallery")
    lines = (tmp_path / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    assert len(rows) == 4 and rows[0].startswith(
        "| [cross_entropy](gallery/h100-sxm/kernel-cross-entropy.png) | forward | gpt2 64 × 1024 |"
    )
    largest = next(p for p in problems(record, "cross_entropy") if p.size == SIZE)
    ours = largest.ours.row
    for words in (text.short_time(ours.step_ms.value), text.share(ours.roofline_share), "F.cross_entropy: "):
        assert words in rows[0]
    assert "SDPA, cuDNN: " in rows[2]  # the fastest of two libraries
    assert sum("[record](records/h100-sxm/" in line for line in lines) == 1
