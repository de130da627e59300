"""One test per setting: replays its measured block times for pytest-benchmark, or tells why there are none."""

import pytest

from bench.plan import BASELINE
from bench.plugin import BenchmarkPlugin
from results.analysis import measurement_row


def plugin(config: pytest.Config) -> BenchmarkPlugin:
    found = config.pluginmanager.getplugin("stepladder-benchmark")
    if found is None:  # collected by name, without --benchmark
        pytest.skip("this measures; add --benchmark", allow_module_level=True)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ladder = plugin(metafunc.config)
    if metafunc.function is test_setting:
        metafunc.parametrize(
            "name",
            [
                pytest.param(name, marks=pytest.mark.benchmark(group="ladder", timer=replay), id=name)
                for name, replay in ladder.replays.items()
            ],
        )
    else:
        skipped = {p.label: p.skipped for places in ladder.plan.derivations.values() for p in places if p.skipped}
        metafunc.parametrize(("rung", "reason"), skipped.items(), ids=skipped)


def test_setting(name: str, request: pytest.FixtureRequest, benchmark) -> None:
    """Shows one setting's step times, in seconds, as pytest-benchmark shows any."""
    ladder = plugin(request.config)
    assert ladder.record is not None
    measurement = ladder.record.measurements.get(name)
    if measurement is None:
        pytest.skip("replaced by a setting without the rung that failed; see the table")
    if measurement.status != "ok":  # before the fixture is used: a test that fails after timing would still be saved
        pytest.fail(f"{measurement.status}: {measurement.reason}", pytrace=False)
    row = measurement_row(ladder.record, name)
    info = {
        "tokens_per_second": row.tokens_per_second and row.tokens_per_second.value,
        "times_over_baseline": row.over_baseline.ratio if row.over_baseline and name != BASELINE else None,
        "verdict": row.over_baseline_verdict,
        "peak_memory_bytes": row.peak_memory_bytes,
        "flags": list(row.flags),
    }
    benchmark.extra_info.update({key: value for key, value in info.items() if value is not None})
    samples = ladder.replays[name].samples
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)


def test_skipped(rung: str, reason: str) -> None:
    """A rung that cannot run here, with its reason."""
    pytest.skip(f"{rung}: {reason}")
