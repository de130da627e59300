"""Pytest at the root: `pytest` runs the tests, `pytest --benchmark` measures this machine's ladder instead."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stepladder", "measuring the ladder of optimizations")
    group.addoption("--benchmark", action="store_true", help="measure this device's ladder instead of running tests")
    group.addoption("--quick", action="store_true", help="a smoke run: one trial of 5 blocks, no interval")
    group.addoption("--suite", metavar="NAME", help="what to measure: ladder (default)")
    group.addoption(
        "--derive", metavar="NAME", help="cumulative (default), single, leave-one-out, scaling, or all of them"
    )
    group.addoption("--rungs", metavar="A,B", help="keep to these rungs (names: python -m stepladder ladder)")
    group.addoption("--profile", metavar="NAME", help="workload of this profile instead of the detected device's")
    group.addoption("--model", metavar="NAME", help="model size instead of the profile's, e.g. gpt2")
    group.addoption("--micro-batch", metavar="B", help="sequences per forward pass instead of the profile's")
    group.addoption("--seq-len", metavar="T", help="tokens per sequence instead of the profile's")
    group.addoption("--trials", metavar="N", help="fresh processes per setting (default 5)")
    group.addoption("--time-limit", metavar="SECONDS", help="for one process before it counts as hung (default 600)")
    group.addoption("--device", metavar="KIND", help="cuda, mps or cpu instead of the best one there is")
    group.addoption("--results-dir", metavar="DIR", help="records and charts go here, not to results/ and plots/")


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its own options
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark"):
        from bench.plugin import BenchmarkPlugin

        config.pluginmanager.register(BenchmarkPlugin(config), "stepladder-benchmark")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path == ROOT / "bench" and not config.getoption("benchmark"):
        return True
    return None
