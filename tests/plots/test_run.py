"""A chart from every kind of run: what it says is what the run wrote."""

import json
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex

from plots import style
from plots.curves import POINTS, alike, curve, every, extremes, medians, smooth
from plots.run import draw_run, save_run
from plots.run_heading import count, cut
from results.runs import METRICS, RunError, load_run
from tests.made_runs import make_run

ROOT = Path(__file__).resolve().parent.parent.parent


def draw(*folders: Path):
    with style.drawing():
        figure = draw_run([load_run(folder) for folder in folders])
        figure.canvas.draw()  # nothing may fail as late as on saving
    return figure


def texts(figure) -> list[str]:
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return [artist.get_text() for artist in found if artist.get_text()]


def line(figure, label: str):
    return next(line for line in figure.axes[0].lines if line.get_label() == label)


def test_one_run_is_drawn_into_its_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "nano")
    png, svg = save_run([folder])
    assert (png, svg) == (folder / "loss.png", folder / "loss.svg")
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert width == 1600 and 1200 < height < 1600
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "nano", steps=60)
    assert [p.read_bytes() for p in save_run([folder], tmp_path / "a")] == [
        p.read_bytes() for p in save_run([folder], tmp_path / "b")
    ]


def test_the_chart_says_what_was_trained_and_what_came_out(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "nano", torch="2.13.0", commit="0123456789abcdef"))
    found = texts(draw(run.path))
    for words in (
        "Training gpt2 on fineweb-edu-10b",
        "NVIDIA H100 80GB HBM3 · bf16, compile, flash, fused_adamw",
        "nano · 524,288 tokens a step: micro-batch 64 × 1024 tokens, 8 accumulated",
        f"{run.vals[300]:.4f}",
        "best validation, step 300",
        "157M",
        "473k",
        "40 %",
        "5 min 33 s",
        "learning rate",
        "MFU",
        "step",
        "2026-01-31 · torch 2.13.0 · commit 012345678 · finished at step 300",
    ):
        assert words in found, words


def test_validation_and_its_best_are_where_they_were_measured(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "nano")
    with open(folder / METRICS, "a") as file:
        again = {"kind": "val", "step": 300, "loss": 9.0, "tokens": 1}
        file.write(json.dumps(again) + "\n")  # the later measurement counts
    run, figure = load_run(folder), draw(folder)
    validation, best = line(figure, "validation"), line(figure, "best validation")
    assert list(validation.get_xdata()) == [50, 100, 150, 200, 250, 300]
    assert list(validation.get_ydata()) == list(run.vals.values())
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([250], [run.vals[250]])


def test_the_steep_start_is_cut_off_and_said_to_be(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "nano", steps=2000))
    figure = draw(run.path)
    low, high = figure.axes[0].get_ylim()
    first = max(run.steps.loss)
    assert low < min(run.steps.loss[100:]) + 0.2 and high < 8.0 < first
    assert any(f"The highest loss, {first:.2f}, lies above the chart." in words for words in texts(figure))


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_short_runs_are_drawn_whole(tmp_path: Path, steps: int) -> None:
    run = load_run(make_run(tmp_path / "nano", steps=steps, validate_every=0, stop=None, mfu=None))
    figure = draw(run.path)
    low, high = figure.axes[0].get_ylim()
    assert all(low < loss < high for loss in run.steps.loss)
    assert list(line(figure, "training, each step").get_xdata()) == list(range(1, steps + 1))
    found = texts(figure)
    assert any("not stopped: running, or killed" in words for words in found)
    assert "MFU" not in found and not any("validation" in words for words in found)


def test_a_loss_that_is_no_number_is_marked(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "nano", breaks_at=212, stop="loss is nan")
    figure = draw(folder)
    assert "loss is nan at step 212" in texts(figure)
    assert any(list(artist.get_xdata()) == [212, 212] for artist in figure.axes[0].lines)


def test_a_run_of_nothing_but_nan_is_drawn(tmp_path: Path) -> None:
    assert "loss is nan at step 1" in texts(draw(make_run(tmp_path / "nano", breaks_at=1)))


def test_resumptions_are_marked(tmp_path: Path) -> None:
    figure = draw(make_run(tmp_path / "nano", resumed=(120, 200)))
    marks = [artist.get_xdata()[0] for artist in figure.axes[0].lines if artist.get_marker() == "^"]
    assert marks == [120, 200] and any("Triangles: the run was resumed here." in words for words in texts(figure))
    assert not any("Triangles" in words for words in texts(draw(make_run(tmp_path / "other"))))


def test_a_run_that_says_little_about_itself_is_drawn(tmp_path: Path) -> None:
    rows = [{"kind": "step", "step": s, "loss": 5.0} for s in (1, 2)]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"Training {tmp_path.name}" in texts(draw(tmp_path))


def test_names_are_taken_letter_by_letter(tmp_path: Path) -> None:
    """Mathematics between dollar signs, control characters, and more letters than there is room for."""
    folder = make_run(tmp_path / "a$x_{$b", device="\x1b[31m" + "wide " * 60, recipe={"data": {"corpus": "$\\frac$"}})
    found = texts(draw(folder))
    assert "Training gpt2 on $\\frac$" in found and not any("\x1b" in words for words in found)
    assert max(map(len, found)) <= style.LONGEST_NOTE


def test_several_runs_are_drawn_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [make_run(tmp_path / name, seed=i) for i, name in enumerate(("warm", "cold"))]
    assert save_run(folders) == [Path("loss-warm-cold.png"), Path("loss-warm-cold.svg")]
    figure = draw(*folders)
    found = texts(figure)
    assert {"Training runs compared", "warm", "cold", "best validation"} <= set(found)
    assert "gpt2 · fineweb-edu-10b · NVIDIA H100 80GB HBM3 · bf16, compile, flash, fused_adamw" in found
    lines = [artist for artist in figure.axes[0].lines if len(artist.get_xdata()) == 300]
    assert [artist.get_color() for artist in lines] == [style.BLUE, style.VERMILLION]
    assert "step" in found


def test_losses_in_units_that_differ_are_said_to(tmp_path: Path) -> None:
    a, b, c = (
        make_run(tmp_path / name, steps=9, dataset={"tokenizer_sha256": sha}) for name, sha in zip("abc", "112", strict=True)
    )
    words = "Their tokenizers differ, so losses per token do not compare."
    assert not any(words in text for text in texts(draw(a, b))) and any(words in text for text in texts(draw(a, b, c)))


def test_runs_of_different_steps_are_compared_by_tokens(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(size), tokens_per_step=size) for size in (1000, 2000)]
    figure = draw(*folders)
    ends = [artist.get_xdata()[-1] for artist in figure.axes[0].lines if len(artist.get_xdata()) == 300]
    assert ends == [300_000, 600_000] and "tokens" in texts(figure) and "step" not in texts(figure)


def test_twenty_runs_can_be_told_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(i), steps=60, validate_every=0) for i in range(20)]
    assert draw(*folders).get_figheight() > 10
    curves = [curve(load_run(folder), i, by_tokens=False) for i, folder in enumerate(folders)]
    assert len({(c.colour, c.dashes) for c in curves}) == 20


def test_a_run_without_a_step_is_refused(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"kind": "start", "step": 0}\n')
    with pytest.raises(RunError, match="no step has been taken yet, so there is nothing to draw"):
        save_run([tmp_path])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write .*file/loss.png: .*; choose another folder with --out"):
        save_run([make_run(tmp_path / "nano", steps=2)], tmp_path / "file")


def test_a_hundred_thousand_steps_are_drawn_in_seconds_and_few_points(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "long", steps=100_000, validate_every=500)
    began = time.process_time()
    _, svg = save_run([folder])
    assert time.process_time() - began < 15  # about 1.5
    assert svg.stat().st_size < 500_000


# ----------------------------------------------------------------------------------------------- numbers


def test_smoothing_is_the_mean_of_a_window_around_each_step() -> None:
    values = np.array([9.0, 5.0, 4.0, 3.0, np.nan, 1.0, 2.0])
    expected = [9.0, 6.0, 4.0, 3.5, np.nan, 1.5, 1.5]  # at the start nothing is ahead of what is behind
    assert np.array_equal(smooth(values, 3), expected, equal_nan=True)
    assert np.array_equal(smooth(values, 1), values, equal_nan=True)


def test_thinning_keeps_spikes_gaps_and_order() -> None:
    x, y = np.arange(50_000.0), np.zeros(50_000)
    y[20_000], y[30_000], y[40_000:41_000] = 7.0, -7.0, np.nan
    thin_x, thin_y = extremes(x, y)
    assert len(thin_x) <= POINTS and np.all(np.diff(thin_x) > 0)
    assert np.nanmax(thin_y) == 7.0 and np.nanmin(thin_y) == -7.0 and np.isnan(thin_y).any()
    assert every(x, x)[0][[0, -1]].tolist() == [0.0, 49_999.0] and len(every(x, x)[0]) == POINTS
    middle_x, middle_y = medians(x, y)
    assert len(middle_x) == POINTS // 4 and np.nanmax(middle_y) == 0.0 and np.isfinite(middle_y).all()
    short = np.array([1.0, np.inf, 3.0])
    assert np.isnan(extremes(short, short)[1][1]) and list(medians(short, short)[1]) == [1.0, 3.0]


def test_a_curve_over_tokens_has_its_validations_there_too(tmp_path: Path) -> None:
    drawn = curve(load_run(make_run(tmp_path / "nano", tokens_per_step=10)), 0, by_tokens=True)
    assert drawn.x[-1] == 3000 and list(drawn.val_x) == [500, 1000, 1500, 2000, 2500, 3000]


def test_alike() -> None:
    assert alike([100.0, 100.9]) and not alike([100.0, 102.0]) and not alike([math.nan]) and alike([1.0])


@pytest.mark.parametrize(("number", "words"), [(1e10, "10B"), (9.44e9, "9.44B"), (6.55e8, "655M"), (473e3, "473k"),
                                               (9100, "9,100"), (2e12, "2T"), (0, "0")])  # fmt: skip
def test_count(number: float, words: str) -> None:
    assert count(number) == words


def test_cut() -> None:
    assert cut("abcdef", 6) == "abcdef" and cut("abcdefg", 6) == "abcde…" and cut("a\nb", 6) == "a b"


def test_drawing_runs_is_no_part_of_the_gallery() -> None:
    """Charts of records are not stale because charts of runs are drawn in another way."""
    program = (
        "from pathlib import Path; from plots import gallery\n"
        "before, read = gallery.source_digest(), Path.read_bytes\n"
        "Path.read_bytes = lambda file: b'' if file.name in ('run.py', 'run_heading.py', 'curves.py') else read(file)\n"
        "assert gallery.source_digest() == before\n"
        "Path.read_bytes = lambda file: b'' if file.name == 'style.py' else read(file)\n"
        "assert gallery.source_digest() != before"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60, env={**os.environ})


# ----------------------------------------------------------------------------------- HellaSwag and sampling


def panel(figure, words: str):
    """The axes whose title begins like this; None if there are none."""
    return next((ax for ax in figure.axes if ax.get_title(loc="left").startswith(words)), None)


def test_hellaswag_is_drawn_over_steps_beside_what_was_published(tmp_path: Path) -> None:
    figure = draw(make_run(tmp_path / "nano", hellaswag_every=100))
    ax = panel(figure, "HellaSwag (plain), share right by loss per token")
    curve_drawn = next(line for line in ax.lines if len(line.get_xdata()) == 3)
    assert list(curve_drawn.get_xdata()) == [100, 200, 300]
    assert list(curve_drawn.get_ydata()) == pytest.approx([0.25 + 0.05 / 3, 0.25 + 0.1 / 3, 0.30])
    levels = {line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1}
    assert levels == {0.25, 0.2955}
    low, high = ax.get_ylim()
    assert low < 0.25 and high > 0.309, "the interval is on the chart too"
    found = texts(figure)
    assert "guessing" in found and "OpenAI gpt2, 0.2955" in found
    assert any("HellaSwag over 10,042 items, with its 95 % interval" in words for words in found)
    assert panel(figure, "sampling") is None


def test_the_other_scoring_is_named_and_has_its_own_reference(tmp_path: Path) -> None:
    figure = draw(make_run(tmp_path / "nano", hellaswag_every=100, scorings=["lm-eval"]))
    assert panel(figure, "HellaSwag (lm-eval), share right by loss per byte") is not None
    assert "OpenAI gpt2, 0.3114" in texts(figure)


def test_runs_are_compared_side_by_side(tmp_path: Path) -> None:
    """Losses, HellaSwag and sampling throughput; a run without one of them keeps its place."""
    folders = [
        make_run(tmp_path / "a", hellaswag_every=100, sampled_at=81.0),
        make_run(tmp_path / "b", hellaswag_every=150, sampled_at=1812.0),
        make_run(tmp_path / "c"),
    ]
    figure = draw(*folders)
    found = texts(figure)
    assert "HellaSwag" in found and found.count("0.3000") == 2
    bars = panel(figure, "sampling, tokens per second, median").patches
    assert [bar.get_width() for bar in bars] == [81.0, 1812.0, 0.0]
    assert [style.BLUE, style.VERMILLION] == [to_hex(bar.get_facecolor()).upper() for bar in bars[:2]]
    assert "81" in found and "1,812" in found
    colours = {line.get_color() for line in panel(figure, "HellaSwag").lines if len(line.get_xdata()) in (2, 3) and line.get_marker() == "o"}
    assert colours == {style.BLUE, style.VERMILLION}


def test_compared_by_tokens_hellaswag_is_too(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / str(size), tokens_per_step=size, hellaswag_every=150) for size in (1000, 2000)]
    lines = [line for line in panel(draw(*folders), "HellaSwag").lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in lines] == [[150_000, 300_000], [300_000, 600_000]]


def test_without_either_there_is_no_empty_panel(tmp_path: Path) -> None:
    plain, full = draw(make_run(tmp_path / "a")), draw(make_run(tmp_path / "b", hellaswag_every=100, sampled_at=10.0))
    assert len(plain.axes) == 3 and len(full.axes) == 5 and full.get_figheight() > plain.get_figheight()


def test_the_references_are_those_of_the_evaluation() -> None:
    pytest.importorskip("torch")
    from evals.hellaswag import PUBLISHED
    from plots.run import OPENAI

    assert OPENAI == {scoring: models["gpt2"][1] for scoring, models in PUBLISHED.items()}
