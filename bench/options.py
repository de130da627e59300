"""The options of `pytest --benchmark`.

They live in a file that imports next to nothing, because pytest reads them in two ways: where the project is installed, as an
entry point, before it parses the command line; else from the root conftest. Without the former, pytest does not know yet that
an option takes a value when it looks for the folder to run in, and takes `--results-dir DIR` for a folder of tests if DIR
exists; hence `--results-dir=DIR` in the README.
"""

import pytest

# Say what --benchmark measures: option -> (metavar, help).
OPTIONS = {
    "--suite": ("NAME", "what to measure: ladder (default), sampling, kernels, or all"),
    "--derive": (
        "NAME",
        "cumulative (default), single, leave-one-out, choices, scaling (sampling: batch, no choices), or all of them",
    ),
    "--rungs": ("A,B", "keep to these rungs (names: python -m stepladder ladder); of kernels, to these kernels"),
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
