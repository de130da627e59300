"""Pytest at the root: `pytest` runs the tests, `pytest --benchmark` measures this machine's ladder instead."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# Options that say what --benchmark measures: name -> (metavar, help).
OPTIONS = {
    "--suite": ("NAME", "what to measure: ladder (default)"),
    "--derive": ("NAME", "cumulative (default), single, leave-one-out, scaling, or all of them"),
    "--rungs": ("A,B", "keep to these rungs (names: python -m stepladder ladder)"),
    "--profile": ("NAME", "workload of this profile instead of the detected device's"),
    "--model": ("NAME", "model size instead of the profile's, e.g. gpt2"),
    "--micro-batch": ("B", "sequences per forward pass instead of the profile's"),
    "--seq-len": ("T", "tokens per sequence instead of the profile's"),
    "--trials": ("N", "fresh processes per setting (default 6)"),
    "--time-limit": ("SECONDS", "for one process before it counts as hung (default 600)"),
    "--device": ("KIND", "cuda, mps or cpu instead of the best one there is"),
    "--results-dir": ("DIR", "records and charts go here, not to results/ and plots/"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stepladder", "measuring the ladder of optimizations")
    group.addoption("--benchmark", action="store_true", help="measure this device's ladder instead of running tests")
    group.addoption("--quick", action="store_true", help="a smoke run: one trial of 5 blocks, no interval")
    for option, (metavar, text) in OPTIONS.items():
        group.addoption(option, metavar=metavar, help=text)


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its own options
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark"):
        from bench.plugin import BenchmarkPlugin

        config.pluginmanager.register(BenchmarkPlugin(config), "stepladder-benchmark")
        return
    for option in ("--quick", *OPTIONS):
        if config.getoption(option):
            pytest.exit(f"{option} says what to measure; add --benchmark", returncode=2)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path == ROOT / "bench" and not config.getoption("benchmark"):
        return True
    return None
