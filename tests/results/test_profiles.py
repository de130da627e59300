"""Profiles on disk: written once, read whole, refused when they are not what they say."""

import dataclasses
import json
from pathlib import Path

import pytest

from results import profiles, store
from results.schema import RecordError, from_dict, to_dict
from tests.factories import make_record
from tests.made_profiles import make_profile


def test_what_was_written_is_read_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    profile = make_profile()
    path = profiles.write(profile, tmp_path)
    assert profiles.load(path) == profile and profiles.write(profile, tmp_path) == path
    assert path.parent.name == "h100-sxm" and path.name.startswith("20260201T120000Z_012345678_")
    assert profiles.load_all(tmp_path) == ([(path, profile)], [])
    assert profiles.load_all(tmp_path, "another") == ([], [])


def test_a_profile_is_no_record_and_a_record_no_profile(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="unknown field|lacks field"):
        store.load(profiles.write(make_profile(), tmp_path))
    with pytest.raises(RecordError, match="unknown field|lacks field"):
        profiles.load(store.write(make_record("h100"), tmp_path))


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_damage_is_named(tmp_path: Path, cut: int) -> None:
    path = profiles.write(make_profile(), tmp_path)
    payload = path.read_bytes()
    path.write_bytes(payload[:cut] if cut != -1 else payload.replace(b'"busy_ms": 12', b'"busy_ms": 13'))
    (_, problems) = profiles.load_all(tmp_path)
    assert len(problems) == 1 and str(path) in problems[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"suite": "ladder"}, "record.suite is 'ladder'"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"busy_ms": 1.0}, "shares add up to"),
        ({"created_utc": "yesterday"}, "created_utc"),
        ({"model": {"n_layer": 12}}, "record.model\\['n_head'\\]"),
        ({"workload": {}}, "record.workload\\['micro_batch'\\]"),
        ({"roofline": {"components_ms": {"GELU": -1.0}}}, "not milliseconds by part"),
        ({"roofline": {"components_ms": {}, "dtype": "fp8", "peaks": "measured"}}, "which record.peaks does not hold"),
        (
            {"roofline": {"components_ms": {}, "dtype": "bf16", "peaks": "datasheet"}},
            "which record.peaks does not hold",
        ),
        ({"device": {"slug": "../x", "name": "x"}}, "device\\['slug'\\]"),
    ],
)
def test_what_readers_count_on_is_checked_before_it_is_written(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(RecordError, match=words) as error:
        profiles.write(make_profile(**change), tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "thing"}, "'thing' of phase"),
        ({"phase": "sideways"}, "phase 'sideways'"),
        ({"calls": 0.0}, "0.0 calls"),
        ({"share_ms": 99.0}, "share of 99.0 ms"),
    ],
)
def test_every_kernel_is_checked(change: dict, words: str) -> None:
    profile = make_profile()
    profile.kernels[1] = dataclasses.replace(profile.kernels[1], **change)
    with pytest.raises(RecordError, match=rf"record.kernels\[1\] .*{words}"):
        profiles.check(profile)


def test_a_field_too_many_or_of_another_type_is_refused() -> None:
    data = json.loads(json.dumps(to_dict(make_profile())))
    data["kernels"][0]["calls"] = "often"
    with pytest.raises(RecordError, match=r"kernels\[0\].calls"):
        from_dict(profiles.Profile, data)


def test_the_usual_workload_speaks_for_a_device_then_the_newest() -> None:
    old, new = make_profile(), make_profile(created_utc="2026-03-01T00:00:00Z")
    custom = make_profile(created_utc="2026-04-01T00:00:00Z", custom=True)
    pairs = [(Path(str(i)), p) for i, p in enumerate((old, new, custom))]
    assert profiles.choose(pairs, "h100-sxm")[1] is new
    assert profiles.choose(pairs[2:], "h100-sxm")[1] is custom and profiles.choose(pairs, "laptop") is None


def test_profiles_lie_beside_the_records() -> None:
    assert profiles.folder(Path("a/results/records")) == Path("a/results/profiles")


def test_every_committed_profile_is_whole() -> None:
    found, problems = profiles.load_all(Path(profiles.__file__).parent / profiles.FOLDER)
    assert not problems and all(profile.num_steps >= 1 for _, profile in found)
