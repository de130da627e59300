"""Numbers derived from records whose speeds are known, and records with holes in them."""

import dataclasses
from pathlib import Path

import pytest

from results import analysis
from results.stats import FASTER, NO_DIFFERENCE, NO_FLOOR, NO_INTERVAL, SLOWER
from tests.factories import make_measurement, make_record, make_trial

PATH = Path("records/h100-sxm/one.json")
WORKLOAD = {
    "model": "gpt2",
    "vocab_size": 50257,
    "micro_batch": 4,
    "seq_len": 1000,
    "grad_accumulation": 2,
    "world_size": 1,
}


@pytest.fixture(scope="module")
def record():
    return make_record("h100")


def by_label(record, derivation="cumulative"):
    return {row.label: row for row in analysis.rows(record, derivation)}


def tiny(times, workload=WORKLOAD, **changes):
    """A baseline that takes 100 ms per step, and a rung "x" with the given block times per trial."""

    def measure(name, per_trial, **extra):
        trials = [
            dataclasses.replace(
                make_trial(1.0, __import__("random").Random(0), index=i), device_ms=ms, wall_ms=[t * 1.25 for t in ms]
            )
            for i, ms in enumerate(per_trial)
        ]
        return make_measurement(name, trials, extra.pop("workload", workload), **extra)

    base = [[100.0] * 5] * len(times)
    made = make_record("h100", derivations=("cumulative",))
    steps = [
        dataclasses.replace(made.derivations["cumulative"][0]),
        dataclasses.replace(made.derivations["cumulative"][1], label="x", measurement="x"),
    ]
    measurements = {
        "baseline": measure("baseline", base),
        "baseline-again": measure("baseline-again", base),
        "x": measure("x", times, **changes),
    }
    return dataclasses.replace(made, workload=WORKLOAD, derivations={"cumulative": steps}, measurements=measurements)


def test_every_number_of_a_row_by_hand():
    # Medians per trial 50, 40, 45: the median is 45 ms for 4 · 1000 · 2 tokens.
    record = tiny([[50.0, 49.0, 51.0], [40.0, 40.0, 40.0], [45.0, 44.0, 46.0]])
    row = by_label(record)["x"]
    assert row.step_ms.value == 45.0 and row.step_ms.n == 3
    assert row.tokens_per_second.value == pytest.approx(8000 / 0.045)
    assert row.tokens_per_second.low == pytest.approx(8000e3 / row.step_ms.high)
    # Sorted blocks 40 40 40 44 45 46 49 50 51: the 20th percentile lies at place 1.6, the 80th at 6.4.
    assert row.tokens_per_second_p80 == pytest.approx(8000e3 / 40.0)
    assert row.tokens_per_second_p20 == pytest.approx(8000e3 / 49.4)
    assert row.over_baseline.ratio == pytest.approx(100 / 45)
    assert row.mfu_full == pytest.approx(8000 / 0.045 * 855.2e6 / 989e12)
    assert row.mfu_causal / row.mfu_full == pytest.approx(798.5 / 855.2)
    assert row.roofline_share == pytest.approx(8000 / 0.045 / 740_000)
    assert row.host_overhead == pytest.approx(0.2)
    assert analysis.noise_floor(record) == 0.0


def test_planted_speeds_come_back_with_verdicts(record):
    rows = by_label(record)
    assert rows["tf32"].over_baseline.low < 2.15 < rows["tf32"].over_baseline.high
    assert rows["flash"].over_previous_verdict == FASTER
    assert rows["padded_vocab"].over_previous_verdict == NO_DIFFERENCE
    assert rows["max_autotune"].over_previous_verdict == SLOWER
    assert rows["baseline"].over_baseline is None and rows["baseline"].is_baseline
    assert rows["compile"].compile_ms == 42e3 and rows["baseline"].compile_ms == 800.0
    assert rows["flash"].peak_reserved_bytes > rows["flash"].peak_memory_bytes


def test_a_measurement_apart_from_a_ladder_says_the_same(record):
    row, alone = by_label(record)["flash"], analysis.measurement_row(record, "tf32+bf16+compile+flash")
    assert alone.tokens_per_second == row.tokens_per_second and alone.over_baseline == row.over_baseline
    assert alone.over_previous is None and alone.title == "… + FlashAttention"
    assert analysis.measurement_row(record, "baseline-again").over_baseline_verdict == NO_DIFFERENCE


def test_leave_one_out_is_over_everything(record):
    rows = by_label(record, "leave-one-out")
    assert rows["all"].over_previous is None
    assert rows["flash"].over_previous.low < 1 / 1.62 < rows["flash"].over_previous.high
    assert rows["max_autotune"].over_previous_verdict == FASTER  # it hurts, so all is faster without it


def test_choices_are_over_everything_and_the_best_may_be_one():
    record = make_record("h100", noise=0.002, derivations=("choices",))
    rows = by_label(record, "choices")
    assert rows["all"].over_previous is None and rows["fp16"].status == analysis.SKIPPED
    assert rows["efficient_attention"].over_previous.ratio == pytest.approx(1 / (1.62 * 0.75), rel=0.01)
    assert rows["triton_mlp"].over_previous_verdict == FASTER
    assert analysis.best([(PATH, record)], "h100-sxm").measurement.rungs[-1] == "triton_mlp"


def test_quantised_settings_and_unknown_peaks_have_no_mfu():
    assert by_label(tiny([[50.0]], quantised=True))["x"].mfu_full is None
    record = dataclasses.replace(tiny([[50.0]]), mfu_peak=None, roofline=None)
    row = by_label(record)["x"]
    assert row.mfu_full is None and row.mfu_causal is None and row.roofline_share is None


def test_a_workload_that_was_split_is_compared_per_token_and_flagged():
    half = WORKLOAD | {"micro_batch": 2, "grad_accumulation": 4}
    row = by_label(tiny([[50.0]] * 2, workload=half))["x"]
    assert row.flags == ["micro-batch 2 × 4 accumulated, not 4 × 2: it did not fit"]
    smaller = WORKLOAD | {"micro_batch": 2}
    record = tiny([[50.0]] * 2)
    x = dataclasses.replace(record.measurements["x"], workload=smaller)
    row = by_label(dataclasses.replace(record, measurements=record.measurements | {"x": x}))["x"]
    assert row.over_baseline.ratio == pytest.approx(1.0)  # half the time for half the tokens
    assert row.tokens_per_second.value == pytest.approx(4000 / 0.05)


@pytest.mark.parametrize("status", ["oom", "crashed", "hung", "wrong", "not run"])
def test_a_failed_setting_keeps_its_place_and_reason(status):
    rows = by_label(make_record("h100", statuses={"flash": (status, "because")}))
    assert (rows["flash"].status, rows["flash"].reason) == (status, "because")
    assert rows["flash"].failed and rows["flash"].tokens_per_second is None
    assert rows["padded_vocab"].over_previous is None and rows["padded_vocab"].over_baseline.ratio > 5


def test_a_wrong_setting_is_never_compared_although_it_was_timed():
    record = tiny([[10.0]] * 3, status="wrong", reason="loss off by 0.3")
    assert by_label(record)["x"].tokens_per_second is None
    assert analysis.best([(PATH, record)], "h100-sxm").measurement.id == "baseline"
    comparison = next(c for c in analysis.compare(record, record) if c.id == "x")
    assert comparison.effect is None and "loss off by 0.3" in comparison.note


def test_a_skipped_rung_keeps_its_place():
    row = by_label(make_record("cpu"))["tf32"]
    assert row.status == "skipped" and row.reason == "needs an NVIDIA GPU" and not row.failed


def test_a_quick_record_is_indicative():
    rows = by_label(make_record("h100", trials=1))
    assert rows["flash"].over_baseline.low is None and rows["flash"].over_baseline_verdict == NO_INTERVAL


def test_a_partial_record_without_the_second_baseline_claims_nothing():
    record = make_record("h100", status="partial")
    cut = {name: m for name, m in record.measurements.items() if name != "baseline-again"}
    rows = by_label(dataclasses.replace(record, measurements=cut))
    assert analysis.noise_floor(dataclasses.replace(record, measurements=cut)) is None
    assert rows["flash"].over_baseline_verdict == NO_FLOOR


def test_a_partial_record_pairs_the_trials_that_both_have(record):
    m = record.measurements["tf32"]
    cut = record.measurements | {"tf32": dataclasses.replace(m, trials=m.trials[:3])}
    untimed = cut | {"tf32+bf16": dataclasses.replace(record.measurements["tf32+bf16"], trials=[])}
    rows = by_label(dataclasses.replace(record, measurements=untimed))
    assert rows["tf32"].over_baseline.n == 3
    assert rows["bf16"].status == "not run" and "interrupted" in rows["bf16"].reason


def test_flags_say_where_they_come_from():
    record = tiny([[50.0]] * 2, flags=["measured twice"])
    trials = [
        dataclasses.replace(t, warmup_settled=False, flags=["power cap"]) for t in record.measurements["x"].trials
    ]
    x = dataclasses.replace(record.measurements["x"], trials=trials)
    row = by_label(dataclasses.replace(record, measurements=record.measurements | {"x": x}))["x"]
    assert row.flags == [
        "measured twice",
        "warm-up did not settle in 2 of 2 trials",
        "power cap (trial 1, 2)",
    ]


def test_scaling_by_hand():
    record = make_record("h100", noise=0.0, processes=(1, 2, 4))
    one, two, four = analysis.scaling(record)
    assert one.efficiency.ratio == 1.0 and two.total.value == pytest.approx(2 * two.per_process.value)
    assert two.efficiency.ratio == pytest.approx(1 / 1.025, rel=3e-3)
    assert four.total.value == pytest.approx(4 * one.total.value * four.efficiency.ratio, rel=3e-3)
    assert analysis.scaling(make_record("h100")) == []


def test_scaling_without_the_single_process_has_no_efficiency():
    record = make_record("h100", processes=(2,))
    assert analysis.scaling(record)[0].efficiency is None and analysis.scaling(record)[0].total.value > 0


# ------------------------------------------------------------------------------------------------ best


def test_best_is_the_fastest_right_setting(record):
    found = analysis.best([(PATH, record)], "h100-sxm")
    assert found.measurement.rungs[-1] == "fused_adamw" and found.path == PATH  # max_autotune, above it, loses
    assert found.over_baseline_verdict == FASTER
    assert analysis.best([(PATH, record)], "another") is None
    assert analysis.best([(PATH, record)], "h100-sxm", model="gpt2-xl") is None
    assert analysis.best([(PATH, record)], "h100-sxm", model="gpt2", seq_len=1024) == found
    assert analysis.best([(PATH, record)], "h100-sxm", seq_len=512) is None


def test_the_newest_measurement_of_a_setting_counts():
    old, new = tiny([[10.0]] * 3), tiny([[80.0]] * 3)
    new = dataclasses.replace(new, created_utc="2026-06-01T00:00:00Z")
    for records in ([(PATH, old), (PATH, new)], [(PATH, new), (PATH, old)]):
        assert analysis.best(records, "h100-sxm").record is new


def test_a_setting_that_is_wrong_now_no_longer_counts():
    old, new = tiny([[10.0]] * 3), tiny([[10.0]] * 3, status="wrong", reason="drift")
    new = dataclasses.replace(new, created_utc="2026-06-01T00:00:00Z")
    assert analysis.best([(PATH, old), (PATH, new)], "h100-sxm").measurement.id == "baseline"


def test_a_full_session_goes_before_a_quick_one():
    full, quick = tiny([[50.0]] * 3), tiny([[10.0]])
    quick = dataclasses.replace(quick, quick=True, created_utc="2026-06-01T00:00:00Z")
    assert analysis.best([(PATH, full), (PATH, quick)], "h100-sxm").record is full
    assert analysis.best([(PATH, quick)], "h100-sxm").record is quick


def test_another_workload_is_another_setting():
    small = tiny([[50.0]] * 3)
    large = {
        n: dataclasses.replace(m, workload=WORKLOAD | {"micro_batch": 8})
        for n, m in tiny([[90.0]] * 3).measurements.items()
    }
    record = dataclasses.replace(small, measurements=large, created_utc="2026-06-01T00:00:00Z")
    found = analysis.best([(PATH, small), (PATH, record)], "h100-sxm")
    assert found.measurement.workload["micro_batch"] == 8 and found.tokens_per_second.value == pytest.approx(
        16000 / 0.09
    )


def test_choose_prefers_full_complete_and_new():
    def dated(day, **changes):
        return make_record("h100", created_utc=f"2026-02-{day:02}T00:00:00Z", derivations=("cumulative",), **changes)

    full, newer = dated(1), dated(2)
    partial, quick = dated(3, status="partial"), dated(4, trials=1)
    records = [(Path(str(i)), r) for i, r in enumerate((full, newer, partial, quick))]
    assert analysis.choose(records, "h100-sxm")[1] is newer
    assert analysis.choose(records[2:], "h100-sxm")[1] is quick
    assert analysis.choose(records, "h100-sxm", "scaling") is None and analysis.choose(records, "x") is None


# --------------------------------------------------------------------------------------------- compare


def test_compare_finds_what_moved_and_only_that(record):
    again = make_record("h100", seed=1)
    x = again.measurements["tf32+bf16"]
    slow = dataclasses.replace(
        x, trials=[dataclasses.replace(t, device_ms=[ms * 1.08 for ms in t.device_ms]) for t in x.trials]
    )
    moved = dataclasses.replace(again, measurements=again.measurements | {"tf32+bf16": slow})
    verdicts = {c.id: c.verdict for c in analysis.compare(record, moved)}
    assert verdicts["tf32+bf16"] == SLOWER
    unmoved = [verdict for name, verdict in verdicts.items() if name != "tf32+bf16"]
    assert unmoved.count(NO_DIFFERENCE) >= 0.9 * len(unmoved)


def test_compare_lists_what_only_one_has():
    a, b = make_record("h100", derivations=("cumulative",)), make_record("h100", derivations=("single",))
    found = {c.id: c for c in analysis.compare(a, b)}
    assert (
        found["flash"].note == "only in the second record"
        and found["flash"].a is None
        and found["flash"].effect is None
    )
    assert found["tf32+bf16"].note == "only in the first record" and found["tf32+bf16"].verdict is None
    assert found["baseline"].note is None and found["flash"].label == "FlashAttention alone"


def test_differences_name_device_workload_and_harness(record):
    assert analysis.differences(record, record) == []
    other = dataclasses.replace(
        make_record("laptop", trials=1),
        environment=record.environment | {"harness_sha256": "ef" * 32, "commit": "f" * 40},
    )
    lines = analysis.differences(record, other)
    assert lines[0].startswith("device: NVIDIA H100") and "micro_batch: 64 against 2" in lines
    assert "harness: ababababa against efefefefe" in lines and not any("commit" in line for line in lines)
    assert lines[-1].startswith("the second record is a quick one")


def test_frame_has_a_line_per_row_and_a_column_per_number(record):
    frame = analysis.frame(record)
    assert len(frame) == sum(len(steps) for steps in record.derivations.values())
    line = frame[(frame.derivation == "cumulative") & (frame.label == "flash")].iloc[0]
    row = by_label(record)["flash"]
    assert line.tokens_per_second == row.tokens_per_second.value and line.over_baseline_low == row.over_baseline.low
    assert line.rungs == "tf32 + bf16 + compile + flash"
