"""Chart, tables, sentences and README section of a profile say what the profile says."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from plots import gallery, profile, profile_text, readme, style, text
from plots.profile_table import kernels_table, parts_table
from results import parts, profiles, store
from results.gaps import breakdown
from tests.factories import make_record
from tests.made_profiles import make_kernel, make_profile, usual_kernels

LONG = (
    "triton_red_fused__log_softmax__log_softmax_backward_data__to_copy__unsafe_view_arange_embedding_dense_backward_3"
)


def long_rungs():
    rungs = ["tf32", "bf16", "compile", "cudnn_attention", "padded_vocab", "triton_cross_entropy", "triton_layer_norm"]
    return make_profile(rungs=[*rungs, "triton_adamw", "bf16_weights", "fp8_static", "max_autotune", "cuda_graphs"])


PROFILES = {
    "usual": make_profile(),
    "slow under the profiler": make_profile(step_ms=100.0),
    "no peaks": make_profile(roofline=None),
    "every rung": long_rungs(),
    "all parts": make_profile([*usual_kernels(), make_kernel("ncclDevKernel_AllReduce", 1234.5)], step_ms=1400.0),
    "a processor": make_profile(
        of="cpu", environment={"commit": "0123456789abcdef", "dirty": True, "torch": "2.13.0+cpu"}
    ),
}


def drawn(found):
    with style.drawing():
        return profile.draw(found)


def printed(thing, width=160):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(thing)
    return console.file.getvalue()


def texts(figure):
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_the_chart_says_every_part_with_bound_and_gap_the_worst_first():
    found = make_profile()
    figure = drawn(found)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [part.name for part in breakdown(found).parts] and labels[0] == parts.ATTENTION
    words = texts(figure)
    assert {"18 ms", "5.4 ms", "+13 ms", "14 %"} <= set(words)  # attention's row
    assert any("products at 798 TFLOP/s in bf16, bytes at 3,000 GB/s, both measured" in w for w in words)
    assert any(
        "The parts add up to the step without the profiler, 128 ms; with it, kernels run in 124 ms of 131 ms." in w
        for w in words
    )
    assert any("bf16 + compile + cudnn_attention + triton_adamw" in w for w in words)
    assert any("commit 012345678" in w and "the middle 4 of 8 traced steps · 10 timed blocks" in w for w in words)


def test_bars_end_where_the_time_ends_and_change_colour_at_the_bound():
    figure = drawn(make_profile())
    first = [bar for bar in figure.axes[0].patches if round(bar.get_y() + bar.get_height() / 2) == 0]
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in first] == [
        pytest.approx((0, 5.4)),
        pytest.approx((5.4, 18.4)),
    ]
    assert first[1].get_hatch() and not first[0].get_hatch()


def test_a_part_below_its_bound_is_hollow_up_to_it():
    kernels = [k for k in usual_kernels() if "embedding" not in k.name]
    figure = drawn(make_profile(kernels))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    y = labels.index(parts.EMBEDDING)
    hollow = [
        bar for bar in figure.axes[0].patches if round(bar.get_y() + bar.get_height() / 2) == y and bar.get_width() > 0
    ]
    assert [bar.get_facecolor()[:3] for bar in hollow] == [(1.0, 1.0, 1.0)] and hollow[0].get_width() == pytest.approx(
        0.3
    )
    assert "−0.30 ms" in texts(figure)


@pytest.mark.parametrize("name", PROFILES)
def test_no_two_texts_overlap_and_none_leaves_the_picture(name):
    figure = drawn(PROFILES[name])
    figure.canvas.draw()
    shown = [t for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text().strip() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown]
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        overlap = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(overlap) <= 0.5 or a == b, f"{a!r} overlaps {b!r}"
    for words, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, words


def test_the_three_largest_gaps_are_named_in_a_sentence_each():
    first, second, third = profile_text.sentences(make_profile())
    assert first == (
        "Attention: 18 ms, 14 % of the step, where 5.4 ms would do (3.41×); all of it "
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16 (aten::_cudnn_attention_backward) with 12 ms in 12 calls and "
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16 (aten::_cudnn_attention_forward) with 6.0 ms in 12 calls."
    )
    assert second.startswith("Block GEMMs: 51 ms") and third.startswith("Head GEMMs: 24 ms")


def test_idle_and_unknown_kernels_have_sentences_of_their_own():
    planted = make_kernel("void mystery_kernel<float, 4>(float*, int)", 40.0, calls=1)
    first, second, _ = profile_text.sentences(
        make_profile([*usual_kernels(), planted], step_ms=200.0, traced_step_ms=210.0)
    )
    assert (
        first
        == "Other: 41 ms, 20 % of the step, in what no rule knows; all of it mystery_kernel with 41 ms in 4 calls."
    )
    assert second == "Idle: for 36 ms, 18 % of the step, no kernel runs."
    assert profile_text.sentences(make_profile(roofline=None))[0].startswith(
        "Block GEMMs: 51 ms, 40 % of the step; all of it nvjet"
    )


def test_a_step_at_its_bounds_has_no_gap_to_name():
    kernels = [make_kernel("nvjet", 41.9, "aten::mm", shapes=[(65536, 768), (768, 768)])]
    assert profile_text.sentences(make_profile(kernels, step_ms=41.9)) == []


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        (make_kernel("void at::native::vectorized_elementwise_kernel<4, at::native::F<float>, at::detail::Array<char*, 3> >(int, F)", 1.0,
                     "aten::add"), "vectorized_elementwise_kernel (aten::add)"),
        (make_kernel("void at::native::(anonymous namespace)::indexSelectLargeIndex<float, long, 2, true>(int)", 1.0), "indexSelectLargeIndex"),
        (make_kernel("nvjet_tst_128x256_64x4_TNT", 1.0), "nvjet_tst_128x256_64x4_TNT"),
        (make_kernel("triton_poi_fused_add_0", 1.0, "triton_poi_fused_add_0"), "triton_poi_fused_add_0"),
        (make_kernel("void cut<short, (", 1.0), "cut"),
        (make_kernel("Memcpy DtoD (Device -> Device)", 1.0), "Memcpy DtoD"),
        (make_kernel("", 1.0), ""),
        (make_kernel("graph_12_cpp_fused_gelu_3", 1.0, "graph_12_cpp_fused_gelu_3", kind="operator"), "cpp_fused_gelu_3"),
        (make_kernel("aten::mm", 1.0, "MmBackward0", "aten::mm", kind="operator"), "aten::mm"),
    ],
)  # fmt: skip
def test_kernels_are_called_by_what_a_reader_knows(kernel, name):
    assert profile_text.called(kernel) == name


def test_long_names_keep_both_ends():
    name = profile_text.called(make_kernel(LONG, 1.0))
    assert (
        len(name) == profile_text.LONGEST_NAME
        and name.startswith("triton_red_fused__log")
        and name.endswith("se_backward_3")
    )


def test_the_tables_show_every_part_and_the_longest_kernels():
    found = make_profile(flags=["something was off"])
    table = printed(parts_table(found))
    for part in breakdown(found).parts:
        row = next(line for line in table.splitlines() if line.strip().startswith(part.name))
        assert text.milliseconds(part.ms) in row
    assert (
        "3.41×" in table and "something was off" in table and "bf16 + compile + cudnn_attention + triton_adamw" in table
    )
    kernels = printed(kernels_table(found, 5))
    assert "nvjet_tst_192x192_64x4_2x1_v_bz_NTN (aten::mm)" in kernels and "mystery" not in kernels
    assert "9 more take 36 ms, 28 % of the step." in " ".join(kernels.split())
    every = printed(kernels_table(found))
    assert "mystery_kernel" in every and "other" in every and "GELU + bias gradients" in every


def test_kernels_that_differ_in_shapes_alone_are_one_line():
    kernels = [
        make_kernel("gemm", ms, "aten::mm", shapes=[(65536, 768), (768, c)])
        for ms, c in ((3.0, 768), (4.0, 2304), (5.0, 50304))
    ]
    found = [(line.name, line.part, line.calls, line.ms) for line in profile_text.lines(make_profile(kernels))]
    assert found == [("gemm (aten::mm)", parts.BLOCK, 24.0, 7.0), ("gemm (aten::mm)", parts.HEAD, 12.0, 5.0)]


def test_names_that_look_like_markup_are_printed_as_they_are():
    assert "[red]x[/red]" in printed(kernels_table(make_profile([make_kernel("[red]x[/red]", 100.0)])))


def write(folder: Path, *found):
    return [profiles.write(one, folder / "profiles") for one in found]


def test_the_gallery_holds_a_chart_for_each_device_that_has_a_profile(tmp_path):
    write(tmp_path, make_profile(), make_profile(created_utc="2026-01-01T00:00:00Z"))
    store.write(make_record("laptop", derivations=("cumulative",)), tmp_path / "records")
    files = gallery.draw(tmp_path / "records", tmp_path / "gallery")
    names = {f"{f.parent.name}/{f.name}" for f in files}
    assert {"h100-sxm/profile.png", "h100-sxm/profile.svg", "rtx-3070-laptop/ladder.png"} <= names
    assert gallery.stale(tmp_path / "records", tmp_path / "gallery") == []
    write(tmp_path, make_profile(step_ms=140.0, created_utc="2026-03-01T00:00:00Z"))
    reasons = gallery.stale(tmp_path / "records", tmp_path / "gallery")
    assert reasons == [
        "h100-sxm/profile: the records changed since it was drawn",
        "h100-sxm/profile: the numbers changed since it was drawn",
    ]
    for file in (tmp_path / "profiles").rglob("*.json"):
        file.unlink()
    assert gallery.stale(tmp_path / "records", tmp_path / "gallery") == ["h100-sxm/profile: its records are gone"]
    gallery.draw(tmp_path / "records", tmp_path / "gallery")
    assert not (tmp_path / "gallery" / "h100-sxm" / "profile.png").exists()


def test_a_profile_alone_makes_a_gallery_and_a_damaged_one_is_named(tmp_path):
    (path,) = write(tmp_path, make_profile())
    assert {f.name for f in gallery.draw(tmp_path / "records", tmp_path / "gallery")} == {"profile.png", "profile.svg"}
    path.write_bytes(path.read_bytes()[:-9])
    assert any(str(path) in reason for reason in gallery.stale(tmp_path / "records", tmp_path / "gallery"))


def test_without_bounds_nothing_is_said_of_them():
    bare, usual = (texts(drawn(PROFILES[name])) for name in ("no peaks", "usual"))
    assert any("several parts counts for them equally." in words for words in bare)
    assert not any("Blue up to the bound" in words or "proportion" in words for words in bare)
    assert any("Blue up to the bound" in words for words in usual) and any("in proportion to their bounds" in w for w in usual)
    assert "equally" in printed(parts_table(PROFILES["no peaks"])) and "proportion" in printed(parts_table(PROFILES["usual"]))


def test_the_readme_shows_chart_parts_sentences_and_kernels(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- generated:profile -->\n<!-- /generated -->\nafter\n")
    readme.update(page, tmp_path / "records", tmp_path / "gallery")
    assert "`stepladder profile --best` measures" in page.read_text()
    (path,) = write(tmp_path, make_profile())
    write(tmp_path, make_profile(of="laptop", peaks={"datasheet": None, "measured": None}, roofline=None))
    readme.update(page, tmp_path / "records", tmp_path / "gallery")
    content = page.read_text()
    assert "![Where a step goes on NVIDIA H100 80GB HBM3](gallery/h100-sxm/profile.png)" in content
    assert "| attention | 18 ms | 5.4 ms | +13 ms | 3.41× | 14 % |" in content
    assert "\n1. Attention: 18 ms" in content and "\n3. Head GEMMs" in content
    assert "| `nvjet_tst_192x192_64x4_2x1_v_bz_NTN (aten::mm)` | block GEMMs | backward | 96 | 29 ms |" in content
    assert f"[profile](profiles/h100-sxm/{path.name})" in content
    assert content.startswith("before\n") and content.endswith("<!-- /generated -->\nafter\n")
    assert not readme.update(page, tmp_path / "records", tmp_path / "gallery")


def test_reading_and_drawing_profiles_loads_no_torch():
    code = (
        "import sys, plots.profile, plots.profile_table, plots.gallery, results.gaps; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
