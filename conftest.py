"""Pytest at the root: `pytest` runs the tests, `pytest --benchmark` measures this machine's ladder instead."""

from pathlib import Path

import pytest

from bench import options

ROOT = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.is_registered(options):  # an installed project's entry point has been here before
        options.pytest_addoption(parser)


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads its own options
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("benchmark"):
        from bench.plugin import BenchmarkPlugin

        config.pluginmanager.register(BenchmarkPlugin(config), "stepladder-benchmark")
        return
    for option in ("--quick", *options.OPTIONS):
        if config.getoption(option):
            pytest.exit(f"{option} says what to measure; add --benchmark", returncode=2)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path == ROOT / "bench" and not config.getoption("benchmark"):
        return True
    return None
