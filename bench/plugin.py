"""`pytest --benchmark`: reads the options, measures before the tests run, lets pytest-benchmark show the samples.

All settings are measured first, interleaved, by `bench.session`. The test of each setting then replays its recorded block
times through pytest-benchmark's fixture, whose table, JSON and compare thereby work on times it could not have taken itself.
"""

import importlib.util
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from bench.launch import ROOT, Launcher
from bench.plan import SUITES, Plan, Schedule, make_plan
from bench.progress import RichReporter
from bench.session import Session
from data.tokens import load_tokens
from hardware import detect
from optim_ladder import unknown
from plots.gallery import draw
from plots.readme import update
from plots.table import ladder_table
from results import Record, StoreError, check_writable, store


def stop(reason: object) -> NoReturn:
    """Ends the run with one line and exit code 2."""
    pytest.exit(str(reason), returncode=2)


@dataclass
class Replay:
    """A timer that reads back recorded seconds: pytest-benchmark asks it before and after every round.

    Filled in after the measurement; pytest wants the object itself when tests are collected.
    """

    samples: list[float] = field(default_factory=list)
    calls: int = 0
    now: float = 0.0
    __name__ = "recorded block times"

    def __call__(self) -> float:
        if self.calls % 2:
            self.now += self.samples[self.calls // 2]
        self.calls += 1
        return self.now


class BenchmarkPlugin:
    """Registered by the root conftest when --benchmark is given.

    Attributes:
        plan: what is measured.
        replays: setting id -> its timer.
        record: None until measured.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.record: Record | None = None
        self.closing: list[str] = []
        self.failed = False  # something other than a setting: the exit code must say so
        try:
            refuse_unsupported(config)
            self.plan = plan_from_options(config)
        except ValueError as error:
            stop(error)
        self.replays = {name: Replay() for name in self.plan.settings}
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(ROOT / "bench")]
        # pytest-benchmark files saved runs by Python and system; a GPU is what tells ours apart.
        if getattr(config.option, "benchmark_storage", None) == "file://./.benchmarks":
            config.option.benchmark_storage = f"file://./.benchmarks/{self.plan.device.slug}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Measures everything before the first test; returning None lets pytest go on to the tests."""
        if session.config.option.collectonly or not session.items:
            return
        with self.terminal() as console, sigterm_as_interrupt():
            try:
                check_writable(self.plan.results_dir)
                self.measure(console)
            except (ValueError, OSError) as error:  # StoreError is a ValueError
                stop(error)
        if self.record and self.record.status == "partial":
            raise KeyboardInterrupt

    def measure(self, console: Console) -> None:
        plan = self.plan
        console.print(
            f"\n{plan.device.name}, profile {plan.profile}: {plan.workload.model}, "
            f"B={plan.workload.micro_batch}, T={plan.workload.seq_len}, V={plan.workload.vocab_size}; "
            f"{len(plan.settings)} settings, {plan.schedule.num_trials} trials of {plan.schedule.num_blocks} blocks",
            highlight=False,
        )
        tokens = load_tokens(plan.workload.vocab_size, corpora=ROOT / "corpora", progress=console.print)
        with tempfile.TemporaryDirectory(prefix="stepladder-") as scratch, RichReporter(console) as reporter:
            launcher = Launcher(workdir=Path(scratch), time_limit_s=plan.schedule.time_limit_s)
            session = Session(plan, tokens, launcher, reporter)
            self.record = session.measure()
        if session.problem:
            self.closing.append(f"error: the session ended early: {session.problem}")
        for name, measurement in self.record.measurements.items():
            if name in self.replays:
                self.replays[name].samples = [ms / 1e3 for t in measurement.trials for ms in t.device_ms]
        self.keep(self.record)

    def keep(self, record: Record) -> None:
        """Writes the record, wherever it can be written, and draws the charts."""
        try:
            path = store.write(record, self.plan.results_dir)
        except StoreError as error:
            self.failed = True
            path = store.write(record, Path(tempfile.mkdtemp(prefix="stepladder-records-")))
            self.closing += [f"record: {path}", f"error: {error}"]
            return
        self.closing.append(f"record: {display(path)}")
        try:
            draw(self.plan.results_dir, self.plan.charts_dir)
            if self.plan.results_dir == ROOT / "results" / "records":
                update(ROOT / "README.md", self.plan.results_dir)
        except (ValueError, OSError) as error:
            self.failed = True
            self.closing.append(f"error: charts not drawn: {error}")
        else:
            self.closing.append(f"charts: {display(self.plan.charts_dir)}")
        self.closing += [f"skipped: {problem}" for problem in store.load_all(self.plan.results_dir)[1]]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)  # under pytest-benchmark's own table
    def pytest_terminal_summary(self) -> None:
        if self.record is None:
            return
        with self.terminal() as console:
            for derivation in self.record.derivations:
                console.print()
                console.print(ladder_table(self.record, derivation, width=console.width))
            console.print()
            for line in self.closing:
                console.print(line, highlight=False, markup=False, soft_wrap=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        machine_info["device"] = self.plan.device.name

    @contextmanager
    def terminal(self) -> Iterator[Console]:
        """A console on the real terminal, past pytest's capturing."""
        capture = self.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            yield Console(width=None if sys.stdout.isatty() else 140)


def refuse_unsupported(config: pytest.Config) -> None:
    """Raises ValueError for what cannot go together with a measurement."""
    if config.getoption("numprocesses", None) or config.getoption("dist", "no") != "no":
        raise ValueError("pytest-xdist runs several tests at once, which no timing survives; leave -n and --dist out")
    if not config.pluginmanager.hasplugin("benchmark"):
        raise ValueError("--benchmark needs the package pytest-benchmark, which is not installed or switched off")
    if getattr(config.option, "keyword", None) or getattr(config.option, "markexpr", None):
        raise ValueError("-k and -m choose among tests; choose what to measure with --rungs")
    if config.getoption("quick") and config.getoption("trials"):
        raise ValueError("--quick is one trial; leave --trials out")
    if getattr(config.option, "benchmark_histogram", None) and importlib.util.find_spec("pygal") is None:
        raise ValueError("--benchmark-histogram needs the package pygal, which is not installed; pip install pygal")


def plan_from_options(config: pytest.Config) -> Plan:
    """The session the command line asks for.

    Raises:
        ValueError: an option's value is wrong; the message names it.
    """
    suite = config.getoption("suite") or "ladder"
    if suite not in (*SUITES, "all"):
        raise unknown("suite", suite, [*SUITES, "all"])
    results_dir = config.getoption("results_dir")
    rungs = config.getoption("rungs")
    device = detect(config.getoption("device"))
    schedule = {"num_trials": positive_int(config, "trials"), "time_limit_s": positive_int(config, "time_limit")}
    return make_plan(
        device,
        derivation=config.getoption("derive") or "cumulative",
        rungs=None if rungs is None else [name.strip() for name in rungs.split(",") if name.strip()],
        profile_name=config.getoption("profile"),
        model=config.getoption("model"),
        micro_batch=positive_int(config, "micro_batch"),
        seq_len=positive_int(config, "seq_len"),
        schedule=replace(Schedule.default(device), **{key: value for key, value in schedule.items() if value}),
        quick=config.getoption("quick"),
        results_dir=Path(results_dir) / "records" if results_dir else ROOT / "results" / "records",
        charts_dir=Path(results_dir) / "charts" if results_dir else ROOT / "plots" / "gallery",
    )


def positive_int(config: pytest.Config, name: str) -> int | None:
    text = config.getoption(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--{name.replace('_', '-')} is {text!r}; it must be a positive integer")
    return int(text)


def display(path: Path) -> str:
    """A path relative to where the user stands, if it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a measurement as Ctrl-C does: what is measured is kept."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
