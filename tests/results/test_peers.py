"""Comparisons with other projects: what follows from them, and what is not taken for one."""

import dataclasses
from pathlib import Path

import pytest

from results import RecordError, peers
from results.stats import FASTER, NO_DIFFERENCE, NO_INTERVAL, SLOWER
from tests.made_peers import make_comparison


def by_name(comparison: peers.Comparison) -> dict[str, peers.Row]:
    return {row.name: row for row in peers.rows(comparison)}


def test_ours_comes_first_and_the_others_from_the_fastest_to_those_that_failed() -> None:
    found = peers.rows(make_comparison(failed=["build-nanogpt"]))
    assert [row.name for row in found] == ["ours", "llm.c", "nanogpt", "build-nanogpt"]
    assert found[-1].step_ms is found[-1].tokens_per_second is found[-1].ours_over is found[-1].verdict is None


def test_speed_is_what_the_workload_and_the_steps_say() -> None:
    ours = by_name(make_comparison(noise=0.0))["ours"]
    assert ours.step_ms.value == pytest.approx(100.0) and ours.tokens_per_second.value == pytest.approx(64 * 1024 / 0.1)
    assert ours.ours_over is None and ours.verdict is None
    assert ours.wall_over_step == pytest.approx(1.002)


def test_a_ratio_is_paired_by_trial_with_an_interval() -> None:
    row = by_name(make_comparison({"nanogpt": 1.5}, trials=6))["nanogpt"]
    assert row.ours_over.low < 1.5 < row.ours_over.high and row.ours_over.n == 6
    assert row.ours_over.ratio == pytest.approx(1.5, rel=0.03) and row.verdict == FASTER


def test_where_a_peer_is_faster_that_is_said() -> None:
    assert by_name(make_comparison({"llm.c": 0.8}))["llm.c"].verdict == SLOWER


def test_chance_is_not_claimed_and_one_trial_is_indicative() -> None:
    verdicts = [by_name(make_comparison({"llm.c": 1.0}, trials=6, seed=seed))["llm.c"].verdict for seed in range(40)]
    assert verdicts.count(NO_DIFFERENCE) >= 34
    assert by_name(make_comparison(trials=1))["nanogpt"].verdict == NO_INTERVAL


def test_only_trials_that_both_finished_are_paired() -> None:
    comparison = make_comparison({"nanogpt": 1.5}, noise=0.0)
    ours = comparison.entrants["ours"]
    cut = dataclasses.replace(comparison, entrants={**comparison.entrants, "ours": dataclasses.replace(ours, runs=ours.runs[:3])})
    assert by_name(cut)["nanogpt"].ours_over.n == 3


def test_one_that_failed_later_is_out_whatever_it_did_before() -> None:
    comparison = make_comparison()
    broken = dataclasses.replace(comparison.entrants["llm.c"], status="crashed", reason="trial 4: no")
    row = by_name(dataclasses.replace(comparison, entrants={**comparison.entrants, "llm.c": broken}))["llm.c"]
    assert row.step_ms is None and row.ours_over is None and len(row.entrant.runs) == 4


def test_written_is_read_back_beside_the_records(tmp_path: Path) -> None:
    comparison = make_comparison()
    path = peers.write(comparison, peers.folder(tmp_path / "records"))
    assert path.parent == tmp_path / "peers" / "h100-sxm"
    assert peers.load(path) == comparison and peers.load_all(tmp_path / "peers") == ([(path, comparison)], [])


def test_damage_is_named(tmp_path: Path) -> None:
    path = peers.write(make_comparison(), tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    found, problems = peers.load_all(tmp_path)
    assert not found and len(problems) == 1 and path.name in problems[0] and "damaged" in problems[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "ladder"}, "record.suite is 'ladder', not 'peers'"),
        ({"workload": {"micro_batch": 0}}, "record.workload['micro_batch'] is 0"),
        ({"entrants": {}}, "record.entrants has nothing, not 'ours'"),
        ({"created_utc": "today"}, "record.created_utc is 'today'"),
    ],
)
def test_what_makes_no_sense_is_not_written(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(RecordError) as error:
        peers.write(make_comparison(**changes), tmp_path)
    assert words in str(error.value) and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "good"}, "record.entrants['ours'].status is 'good'"),
        ({"runs": []}, "record.entrants['ours'] is ok and has no runs"),
    ],
)
def test_an_entrant_that_makes_no_sense_is_not_written(tmp_path: Path, changes: dict, words: str) -> None:
    comparison = make_comparison()
    wrong = dataclasses.replace(comparison.entrants["ours"], **changes)
    with pytest.raises(RecordError, match="entrants") as error:
        peers.write(dataclasses.replace(comparison, entrants={"ours": wrong}), tmp_path)
    assert words in str(error.value)


@pytest.mark.parametrize("times", [[], [1.0], [1.0, 0.0], [1.0, -2.0]])
def test_times_must_be_positive_and_enough(tmp_path: Path, times: list[float]) -> None:
    comparison = make_comparison()
    ours = comparison.entrants["ours"]
    wrong = dataclasses.replace(ours, runs=[dataclasses.replace(ours.runs[0], step_ms=times)])
    with pytest.raises(RecordError, match="less than two step_ms, or one that is not positive"):
        peers.write(dataclasses.replace(comparison, entrants={"ours": wrong}), tmp_path)


def test_intervals_speak_before_a_newer_single_trial() -> None:
    full, newer = make_comparison(), make_comparison(trials=1, created_utc="2027-01-01T00:00:00Z")
    newest = make_comparison(created_utc="2027-01-02T00:00:00Z")
    pairs = [(Path("a"), full), (Path("b"), newer)]
    assert peers.choose(pairs, "h100-sxm") == pairs[0]
    assert peers.choose([*pairs, (Path("c"), newest)], "h100-sxm")[1] is newest
    assert peers.choose(pairs, "another") is None
