"""The chart, the table and the README's section of a comparison with other projects."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from plots import gallery, peers, readme, style
from plots.peers_table import peers_table
from results import peers as store
from results.stats import NO_DIFFERENCE
from tests.made_peers import make_comparison

README = "# Title\n<!-- generated:peers -->\nold\n<!-- /generated -->\nkept\n"


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def printed(comparison: store.Comparison) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(peers_table(comparison))
    return " ".join(console.file.getvalue().split())


def test_the_chart_says_speed_ratio_and_what_failed() -> None:
    with style.drawing():
        shown = texts(peers.draw(make_comparison(noise=0.0, failed=["llm.c"])))
    for words in ("655k", "100 ms", "1.50× ± 0.0 %", "1.40× ± 0.0 %", "nanogpt", "oom: trial 1: needed 90 GiB"):
        assert words in shown, words


def test_one_trial_is_hollow_and_says_so() -> None:
    with style.drawing():
        figure = peers.draw(make_comparison(trials=1))
    assert any("Hollow: one trial" in words for words in texts(figure))
    assert all(bar.get_facecolor()[:3] == (1.0, 1.0, 1.0) for bar in figure.axes[0].patches)


def test_a_comparison_in_which_all_others_failed_is_drawn() -> None:
    with style.drawing():
        assert "655k" in texts(peers.draw(make_comparison(noise=0.0, failed=["nanogpt", "build-nanogpt", "llm.c"])))


def test_the_table_says_all_and_footnotes_what_differs() -> None:
    shown = printed(make_comparison({"nanogpt": 1.5, "llm.c": 0.8}, failed=[]))
    assert "1.5" in shown and "exact GELU" in shown and "commit cdcdcdcdc" in shown and "4 trials of 10 steps" in shown
    assert "+0.2 %" in shown  # from outside


def test_the_table_gives_the_reason_of_a_failure_and_says_what_is_indicative() -> None:
    shown = printed(make_comparison(trials=1, failed=["llm.c"]))
    assert "oom" in shown and "needed 90 GiB" in shown and "Indicative: one trial" in shown


def test_a_difference_that_could_be_chance_is_marked() -> None:
    equal = (make_comparison({"nanogpt": 1.0}, seed=seed) for seed in range(40))
    chance = next(comparison for comparison in equal if store.rows(comparison)[1].verdict == NO_DIFFERENCE)
    assert "(=)" in printed(chance) and "(=)" not in printed(make_comparison())


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A repository with a comparison and no record."""
    store.write(make_comparison(), tmp_path / "peers")
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def test_the_gallery_and_the_readme_show_it_and_notice_when_it_changes(house: Path) -> None:
    records, charts = house / "records", house / "gallery"
    drawn = gallery.draw(records, charts)
    assert [path.relative_to(charts).as_posix() for path in drawn] == ["h100-sxm/peers.png", "h100-sxm/peers.svg"]
    assert readme.update(house / "README.md", records, charts)
    shown = (house / "README.md").read_text()
    assert "](gallery/h100-sxm/peers.png)" in shown and "[nanogpt](https://example.org/nanogpt)" in shown
    assert "1.5" in shown and "](peers/h100-sxm/" in shown and shown.endswith("kept\n") and "old" not in shown
    assert gallery.stale(records, charts, house / "README.md") == []
    store.write(make_comparison({"nanogpt": 2.0}, created_utc="2027-01-01T00:00:00Z"), house / "peers")
    reasons = gallery.stale(records, charts, house / "README.md")
    assert any("h100-sxm/peers: the numbers changed" in reason for reason in reasons)
    assert any("README.md" in reason for reason in reasons)


def test_a_damaged_comparison_is_told(house: Path) -> None:
    gallery.draw(house / "records", house / "gallery")
    path = next((house / "peers").rglob("*.json"))
    path.write_bytes(path.read_bytes()[:-9])
    assert any(path.name in reason for reason in gallery.stale(house / "records", house / "gallery"))


def test_without_a_comparison_the_readme_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README)
    readme.update(tmp_path / "README.md", tmp_path / "records", tmp_path / "gallery")
    assert "stepladder peers nanogpt=DIR" in (tmp_path / "README.md").read_text()


def test_all_rungs_of_the_ladder_fit_on_the_chart() -> None:
    names = ["cudnn_attention", "padded_vocab", "triton_cross_entropy", "triton_layer_norm", "triton_mlp", "triton_adamw", "bf16_weights"] * 2
    with style.drawing():
        figure = peers.draw(make_comparison(rungs=names))
        figure.canvas.draw()
        right = max(t.get_window_extent().x1 for t in figure.texts + figure.axes[0].texts if t.get_text())
    assert right <= figure.bbox.x1 and any("ours: cudnn_attention + " in words and words.endswith("…") for words in texts(figure))


def test_one_trial_claims_no_interval() -> None:
    with style.drawing():
        assert not any("95 %" in words for words in texts(peers.draw(make_comparison(trials=1))))
        assert any("95 %" in words for words in texts(peers.draw(make_comparison(trials=2))))


def test_a_checkout_with_changes_of_its_own_says_so() -> None:
    changed, clean = (make_comparison() for _ in range(2))
    entrants = {name: replace(entrant, dirty=name == "llm.c") for name, entrant in changed.entrants.items()}
    assert printed(make_comparison(entrants=entrants)).count("commit cdcdcdcdc with changes of its own") == 1
    assert "changes of its own" not in printed(clean)
