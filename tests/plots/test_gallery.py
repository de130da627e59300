"""Charts from every kind of record, the same bytes each time, and the notice when they are no longer true."""

import itertools
import json
import shutil
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest

from plots import gallery, ladder, leave_one_out, readme, style
from results import StoreError, analysis, store
from tests.factories import CPU_LADDER, make_record

FAILED = {
    "bf16": ("oom", "needed 9.1 GiB of 7.6"),
    "flash": ("wrong", "loss off by 0.3 nats, 0.03 allowed"),
    "compile": ("hung", None),
}
OF_TRAINING = {name: kind for name, kind in gallery.CHARTS.items() if kind.suite == analysis.LADDER}
README = """# Title

<!-- generated:ladder -->
old
<!-- /generated -->
kept\x20\x20
<!-- generated:best -->
<!-- /generated -->
"""


def write(folder, *records):
    return [store.write(record, folder / "records") for record in records]


def texts(figure):
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write(folder, make_record("cpu", derivations=("cumulative",)))
    gallery.draw(folder / "records", folder / "gallery")
    (folder / "README.md").write_text(README)
    readme.update(folder / "README.md", folder / "records", folder / "gallery")
    return folder


@pytest.fixture
def house(drawn, tmp_path):
    """A small repository: one full record, its gallery, its README."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return tmp_path


def stale(house):
    return gallery.stale(house / "records", house / "gallery", house / "README.md")


def test_a_full_record_gets_every_chart(tmp_path):
    write(tmp_path, make_record("h100", processes=(1, 2)))
    files = gallery.draw(tmp_path / "records", tmp_path / "gallery")
    stems = {f.relative_to(tmp_path / "gallery").with_suffix("").as_posix() for f in files}
    assert stems == {"devices", *(f"h100-sxm/{name}" for name in OF_TRAINING)}
    for file in files:
        if file.suffix == ".png":
            width, height = struct.unpack(">II", file.read_bytes()[16:24])
            assert width == 1600 and 300 < height < 1200
        else:
            assert ElementTree.parse(file).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    "record",
    [
        make_record("cpu", trials=1, processes=(1, 2)),
        make_record("laptop", statuses=FAILED),
        make_record("cpu", status="partial", statuses={"": ("not run", "interrupted")}),
        make_record("cpu", statuses=dict.fromkeys(("", *(rung[0] for rung in CPU_LADDER)), ("hung", "no answer"))),
        make_record("h100", mfu_peak=None, roofline=None, processes=(2,)),
        make_record("h100", derivations=()),
        make_record("h100", statuses={"max_autotune": ("crashed", "a very long reason " * 20)}, processes=(1,)),
    ],
    ids=["quick", "failed", "no baseline", "nothing", "no peaks", "no derivation", "no top"],
)
def test_a_record_with_holes_draws_what_it_can(tmp_path, record):
    write(tmp_path, record)
    files = gallery.draw(tmp_path / "records", tmp_path / "gallery")
    assert all(f.stat().st_size > 5000 for f in files)
    assert gallery.stale(tmp_path / "records", tmp_path / "gallery") == []
    drawn = {f.stem for f in files}
    assert ("ladder" in drawn) == any(row.tokens_per_second for row in analysis.rows(record))


def test_the_ladder_says_what_failed_what_lost_and_where_it_comes_from():
    with style.drawing():
        words = texts(ladder.draw(make_record("laptop", statuses=FAILED)))
        full = texts(ladder.draw(make_record("h100")))
    assert "oom: needed 9.1 GiB of 7.6" in words and "hung" in words and "skipped: needs a newer GPU" in words
    assert "no difference" in full and any(w.startswith("−") for w in full) and "roofline 740k" in full
    assert any("NVIDIA H100 80GB HBM3 · gpt2 · micro-batch 64 × 1024 tokens" in w for w in full)
    assert any("torch 2.13.0 · CUDA 13.0 · Triton 3.7.1" in w for w in full)
    assert any("noise floor" in w and "012345678" in w for w in full)


def test_leave_one_out_is_sorted_by_what_is_lost():
    with style.drawing():
        figure = leave_one_out.draw(make_record("h100"))
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels[0] == "without TF32 matmuls" and labels[-1] == "without max-autotune"


def test_choices_are_held_against_the_ladders_own():
    with style.drawing():
        figure = leave_one_out.draw_choices(make_record("h100"))
        assert leave_one_out.draw_choices(make_record("h100", derivations=("cumulative",))) is None
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["with no attention rung", "with memory-efficient attention", "with MLP kernels", "with fp16"]
    words = texts(figure)
    assert "skipped: has bf16" in words and any(w.startswith("Blue: the ladder's own") for w in words)
    assert any(w in words for w in ("−37 %", "−38 %", "−39 %"))  # 1.62 times slower, give or take the noise
    bars = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert len(bars) == 3 and bars[0] == bars[1] != bars[2]  # the last one is within the noise


@pytest.mark.parametrize("device", ["h100", "laptop", "cpu"])
def test_no_two_texts_of_a_chart_overlap(device):
    record = make_record(device, statuses={"fused_adamw": ("crashed", "g++ was not found")}, processes=(1, 2, 4, 8))
    with style.drawing():
        for kind in OF_TRAINING.values():
            figure = kind.draw(record)
            if figure is None:
                continue
            figure.canvas.draw()
            shown = [
                t for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text().strip() and t.get_visible()
            ]
            boxes = [(t.get_text(), t.get_window_extent()) for t in shown]
            frame = figure.bbox
            for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
                overlap = (
                    min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0),
                    min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0),
                )
                assert min(overlap) <= 0.5 or a == b, f"{a!r} overlaps {b!r}"
            for words, box in boxes:
                assert box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1, words


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    write(tmp_path, make_record("cpu", derivations=("cumulative",)))
    first = [f.read_bytes() for f in gallery.draw(tmp_path / "records", tmp_path / "one")]
    second = [f.read_bytes() for f in gallery.draw(tmp_path / "records", tmp_path / "two")]
    assert first == second and len(first) == 2 * 5
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()


def test_one_device_can_be_drawn_alone(house):
    write(house, make_record("h100", derivations=("cumulative",)))
    untouched = (house / "gallery/cpu-xeon-2c/ladder.png").stat().st_mtime_ns
    files = gallery.draw(house / "records", house / "gallery", device="h100-sxm")
    assert {f.parent.name for f in files} == {"h100-sxm", "gallery"}
    assert (house / "gallery/cpu-xeon-2c/ladder.png").stat().st_mtime_ns == untouched
    assert gallery.stale(house / "records", house / "gallery") == []


def test_what_was_just_drawn_is_not_stale(house):
    assert stale(house) == []


def test_a_new_record_is_noticed(house):
    write(house, make_record("cpu", seed=9, created_utc="2026-05-01T00:00:00Z", derivations=("cumulative",)))
    reasons = stale(house)
    assert any("ladder: the records changed" in r for r in reasons) and any("README.md" in r for r in reasons)


def test_a_quick_record_does_not_replace_a_full_one(house):
    write(house, make_record("cpu", trials=1, created_utc="2026-05-01T00:00:00Z", derivations=("cumulative",)))
    assert not any("gallery" in r or "ladder" in r for r in stale(house))


def test_a_damaged_record_is_noticed(house):
    path = next((house / "records").rglob("*.json"))
    path.write_bytes(path.read_bytes().replace(b"seed", b"sead"))
    reasons = stale(house)
    assert "is damaged" in reasons[0] and any("its records are gone" in r for r in reasons)


def test_other_numbers_from_the_same_record_are_noticed(house, monkeypatch):
    true_rows = gallery.analysis.rows
    monkeypatch.setattr(gallery.analysis, "rows", lambda record, derivation: true_rows(record, derivation)[:-1])
    assert any("the numbers changed" in r for r in gallery.stale(house / "records", house / "gallery"))


def test_other_drawing_code_is_noticed(house, monkeypatch):
    monkeypatch.setattr(gallery, "source_digest", lambda: "another")
    assert any("ladder: the drawing code changed" in r for r in stale(house))


def test_a_changed_chart_and_a_missing_one_are_noticed(house):
    (house / "gallery/cpu-xeon-2c/ladder.svg").write_text("<svg/>")
    (house / "gallery/cpu-xeon-2c/memory.png").unlink()
    assert sum("missing or was changed by hand" in r for r in stale(house)) == 2


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"../../x": {"files": {"a.png": ""}}}', '{"a": {"files": {"../b.png": ""}}}']
)
def test_a_broken_manifest_means_never_drawn(house, content):
    (house / "gallery/manifest.json").write_text(content)
    of_this_record = sum(kind.derivation == analysis.CUMULATIVE for kind in OF_TRAINING.values())
    assert all("was never drawn" in r for r in stale(house)) and len(stale(house)) == of_this_record + 1  # and the devices'
    gallery.draw(house / "records", house / "gallery")
    assert stale(house) == []


def test_charts_of_lost_records_are_removed_and_nothing_else(house):
    for path in (house / "records").rglob("*.json"):
        path.unlink()
    (house / "gallery/cpu-xeon-2c/mine.png").write_text("")
    assert gallery.draw(house / "records", house / "gallery") == []
    assert sorted(p.name for p in (house / "gallery").rglob("*.*")) == ["manifest.json", "mine.png"]
    assert json.loads((house / "gallery/manifest.json").read_text()) == {}


def test_a_gallery_that_cannot_be_written_is_one_clear_line(house):
    blocked = house / "blocked"
    blocked.write_text("")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        gallery.draw(house / "records", blocked)


# ---------------------------------------------------------------------------------------------- README


def test_only_the_sections_change(house):
    text = (house / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- generated:ladder -->\n") and "kept  \n" in text and "old" not in text
    assert "![Training speed on Intel Xeon (2 cores)](gallery/cpu-xeon-2c/ladder.png)" in text
    assert "| torch.compile | 2," in text and "skipped: needs an NVIDIA GPU" in text and "noise floor" in text
    link = text.split("[record](")[1].split(")")[0]
    assert (house / link).is_file()
    assert readme.update(house / "README.md", house / "records", house / "gallery") is False


def test_a_changed_section_is_noticed_and_a_changed_rest_is_not(house):
    file = house / "README.md"
    file.write_text(file.read_text().replace("# Title", "# Another title"))
    assert stale(house) == []
    file.write_text(file.read_text().replace("× baseline", "x baseline"))
    assert stale(house) == [f"{file}: a generated section is not what the records say"]


def test_the_fastest_device_opens_the_readme(house):
    write(house, make_record("h100", derivations=("cumulative",)))
    (house / "README.md").write_text(README + "<!-- generated:devices -->\n<!-- /generated -->\n")
    readme.update(house / "README.md", house / "records", house / "gallery")
    text = (house / "README.md").read_text()
    assert "gallery/h100-sxm/ladder.png" in text and "gallery/devices.png" in text
    assert text.rindex("NVIDIA H100") < text.rindex("Intel Xeon")


def test_without_records_the_sections_say_so(tmp_path):
    (tmp_path / "README.md").write_text(README)
    readme.update(tmp_path / "README.md", tmp_path / "records", tmp_path / "gallery")
    assert (tmp_path / "README.md").read_text().count("Nothing has been measured yet") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated:nonsense -->\n<!-- /generated -->\n", "'nonsense'; choose one of ladder, devices, best, sampling"),
        ("<!-- generated:best -->\nno end\n", "without end"),
        ("<!-- generated:best -->\n<!-- generated:ladder -->\n<!-- /generated -->\n", "without end"),
    ],
)
def test_a_section_that_is_not_one_is_refused(tmp_path, text, message):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        readme.update(file, tmp_path)
    assert file.read_text() == text


def test_a_failed_update_keeps_the_old_readme(house, monkeypatch):
    write(house, make_record("h100", derivations=("cumulative",)))
    before = (house / "README.md").read_text()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gallery.os, "fsync", full)
    with pytest.raises(StoreError, match="no space left"):
        readme.update(house / "README.md", house / "records", house / "gallery")
    assert (house / "README.md").read_text() == before and not list(Path(house).glob(".*"))
