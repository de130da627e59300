"""Records on disk: what is written is read back, and nothing damaged, foreign or half-written is taken for a record."""

import dataclasses
import errno
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import results
from results import RecordError, StoreError, store
from results.schema import to_dict
from tests.factories import make_record

ROOT = Path(__file__).parents[2]


@pytest.fixture
def record():
    return make_record("cpu", trials=2, derivations=("cumulative",))


@pytest.fixture
def written(record, tmp_path):
    return store.write(record, tmp_path)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_written_is_read_back(record, written, tmp_path):
    assert written.parent == tmp_path / "cpu-xeon-2c"
    assert written.name.startswith("20260131T123456Z_012345678_")
    assert store.load(written) == record
    assert files(tmp_path) == [f"cpu-xeon-2c/{written.name}"]


def test_file_is_plain_json_with_lists_of_numbers_on_one_line(record, written):
    text = written.read_text()
    assert json.loads(text) == to_dict(record)
    assert '"device_ms": [' in text and len(text.splitlines()) < len(text) / 20


def test_layout_never_touches_strings(record, tmp_path):
    odd = dataclasses.replace(
        record, token_source={"corpus": '[\n 1,\n 2\n] \\ " é ✓', "list": [[1, 2], [], ["a\n[\n1\n]"]]}
    )
    assert store.load(store.write(odd, tmp_path)) == odd


def test_a_checkout_without_git_has_no_commit_in_the_name(record, tmp_path):
    path = store.write(dataclasses.replace(record, environment={"torch": "2.13.0", "commit": None}), tmp_path)
    assert "_nocommit_" in path.name and store.load(path).environment["commit"] is None


def test_writing_again_changes_nothing(record, written, tmp_path):
    before = written.stat().st_mtime_ns
    assert store.write(record, tmp_path) == written
    assert written.stat().st_mtime_ns == before and len(files(tmp_path)) == 1


def test_a_damaged_record_is_not_replaced(record, written, tmp_path):
    written.write_bytes(b"{}")
    with pytest.raises(StoreError, match="is damaged; a record is never changed"):
        store.write(record, tmp_path)
    assert written.read_bytes() == b"{}" and len(files(tmp_path)) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_cannot_be_written(record, tmp_path, bad):
    for broken in (
        dataclasses.replace(record, flops_per_token={"full": bad}),
        dataclasses.replace(record, harness={"deep": [{"er": bad}]}),
    ):
        with pytest.raises(RecordError, match="cannot be written as JSON"):
            store.write(broken, tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"created_utc": "yesterday"}, "created_utc is 'yesterday'"),
        ({"device": {"slug": "../elsewhere", "name": "x"}}, r"slug'\] is '../elsewhere'"),
        ({"device": {"slug": "x"}}, r"device\['name'\] is None"),
        ({"environment": {"commit": "../../x"}}, "neither a git hash nor null"),
        (
            {"workload": {"micro_batch": 0, "seq_len": 8, "grad_accumulation": 1, "world_size": 1}},
            "'micro_batch'] is 0",
        ),
        ({"measurements": {}}, "names 'baseline', which was not measured"),
        ({"seed": "7"}, "seed is '7', not int"),
    ],
)
def test_an_invalid_record_is_not_written(record, tmp_path, change, message):
    with pytest.raises(RecordError, match=message):
        store.write(dataclasses.replace(record, **change), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("times", [[], [0.0], [-1.0]])
def test_block_times_must_be_positive(record, tmp_path, times):
    first = record.measurements["baseline"]
    trial = dataclasses.replace(first.trials[0], device_ms=times)
    broken = record.measurements | {"baseline": dataclasses.replace(first, trials=[trial])}
    with pytest.raises(RecordError, match="trial 0 has no device_ms"):
        store.write(dataclasses.replace(record, measurements=broken), tmp_path)


def test_every_single_flipped_bit_is_noticed(written):
    good, rng = written.read_bytes(), random.Random(0)
    for _ in range(300):
        place, bit = rng.randrange(len(good)), rng.randrange(8)
        written.write_bytes(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
        with pytest.raises(RecordError, match=written.name):
            store.load(written)


def test_every_truncation_is_noticed(written):
    good = written.read_bytes()
    for size in [0, 1, len(good) // 2, len(good) - 2, len(good) - 1]:
        written.write_bytes(good[:size])
        with pytest.raises(RecordError, match=r"is not JSON|is damaged"):
            store.load(written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"schema_version": NaN}', "is not JSON"),
        (b"[]", "schema_version None"),
        (b'{"schema_version": 99}', "has schema_version 99; this version reads 1"),
        (b'{"schema_version": 1}', "its content cannot be verified"),
    ],
)
def test_a_foreign_file_is_named(tmp_path, content, message):
    path = tmp_path / "notes.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as caught:
        store.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def with_right_digest(folder, data):
    payload = json.dumps(data).encode()
    path = folder / f"20260131T123456Z_nocommit_{store.hashlib.sha256(payload).hexdigest()[:12]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return path


def test_another_schema_is_named_although_its_digest_is_right(record, tmp_path):
    with pytest.raises(RecordError, match="schema_version 2"):
        store.load(with_right_digest(tmp_path, to_dict(record) | {"schema_version": 2}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, "record.seed"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"flops_per_token": {"full": 10**400}}, ": "),
        ({"derivations": {"cumulative": [{"label": "x"}]}}, "lacks field 'title'"),
    ],
)
def test_a_wrong_field_is_named(record, tmp_path, change, message):
    path = with_right_digest(tmp_path, to_dict(record) | change)
    with pytest.raises(RecordError, match=message) as caught:
        store.load(path)
    assert path.name in str(caught.value)


def test_load_all_is_sorted_and_names_what_it_skips(tmp_path):
    newer = store.write(make_record("cpu", trials=1, created_utc="2026-03-01T00:00:00Z"), tmp_path)
    older = store.write(make_record("h100", trials=1, created_utc="2026-02-01T00:00:00Z"), tmp_path)
    misplaced = tmp_path / "h100-sxm" / newer.name
    misplaced.write_bytes(newer.read_bytes())
    broken = tmp_path / "cpu-xeon-2c" / "broken.json"
    broken.write_text("{")
    (tmp_path / "cpu-xeon-2c" / f".{newer.name}.1.tmp").write_text("{")  # a writer that was killed

    found, problems = store.load_all(tmp_path)
    assert [path for path, _ in found] == [older, newer]
    assert len(problems) == 2 and str(broken) in problems[0] and "another device's folder" in problems[1]
    assert broken.exists() and misplaced.exists()
    assert [path for path, _ in store.load_all(tmp_path, "cpu-xeon-2c")[0]] == [newer]
    assert store.load_all(tmp_path / "missing") == ([], [])


def fail(number):
    def broken(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return broken


@pytest.mark.parametrize("call", ["fsync", "link"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "no space left; free some"), (errno.EROFS, "read-only"), (errno.EACCES, "not writable")],
)
def test_a_failed_write_is_one_clear_line_and_leaves_nothing(record, tmp_path, monkeypatch, call, number, reason):
    monkeypatch.setattr(store.os, call, fail(number))
    with pytest.raises(StoreError, match=reason) as caught:
        store.write(record, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == []
    if call == "fsync":
        with pytest.raises(StoreError, match=reason):
            store.check_writable(tmp_path)
        assert files(tmp_path) == []


def test_a_file_system_without_hard_links_will_do(record, tmp_path, monkeypatch):
    monkeypatch.setattr(store.os, "link", fail(errno.EPERM))
    path = store.write(record, tmp_path)
    assert store.load(path) == record and len(files(tmp_path)) == 1


def test_a_folder_that_cannot_be_flushed_still_holds_the_record(record, tmp_path, monkeypatch):
    flush, calls = os.fsync, []

    def only_files(descriptor):
        calls.append(descriptor)
        return flush(descriptor) if len(calls) == 1 else fail(errno.EINVAL)()

    monkeypatch.setattr(store.os, "fsync", only_files)
    assert store.load(store.write(record, tmp_path)) == record and len(calls) == 2


def test_the_file_is_flushed_before_it_gets_its_name(record, tmp_path, monkeypatch):
    order, flush, link = [], os.fsync, os.link
    monkeypatch.setattr(store.os, "fsync", lambda fd: (order.append("fsync"), flush(fd)))
    monkeypatch.setattr(store.os, "link", lambda a, b: (order.append("link"), link(a, b)))
    store.write(record, tmp_path)
    assert order == ["fsync", "link", "fsync"]


def test_a_file_where_the_folder_should_be(record, tmp_path):
    blocked = tmp_path / "records"
    blocked.write_text("")
    for attempt in (lambda: store.write(record, blocked), lambda: store.check_writable(blocked)):
        with pytest.raises(StoreError, match="a file stands where a folder is needed"):
            attempt()
    assert isinstance(StoreError("x"), ValueError) and results.StoreError is StoreError


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    store.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_importing_results_and_plots_is_quick_and_needs_no_torch():
    modules = "results, results.analysis, plots, plots.gallery, plots.readme, plots.table"
    code = f"""
import sys, time
start = time.perf_counter()
import {modules}
seconds = time.perf_counter() - start
heavy = [name for name in ("torch", "pandas", "matplotlib", "numpy") if name in sys.modules]
assert not heavy, heavy
assert seconds < 1.5, seconds
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
