"""One comparison: every entrant once per trial, in balanced random order, one process after the other."""

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.launch import ROOT, Launcher
from bench.peers.entrant import Entrant, Task
from bench.peers.process import Failed, Process
from bench.session import Reporter, visiting_orders
from bench.timing import Stretch, warm_up
from data.gpt2 import gpt2_cache
from hardware import Monitor, capture
from optim_ladder import Settings
from results import SCHEMA_VERSION, stats
from results.peers import OURS, Comparison, Run
from results.peers import Entrant as Result


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is compared.

    Args:
        task: what all of them train.
        settings: ours, for the record.
        entrants: by name, `results.peers.OURS` among them.
        token_source: where the tokens come from, for the record.
        num_trials: processes per entrant.
        time_limit_s: for one process.
        seed: of the visiting order.
    """

    task: Task
    settings: Settings
    entrants: Mapping[str, Entrant]
    token_source: dict[str, Any] = field(default_factory=dict)
    num_trials: int = 4
    time_limit_s: float = 600.0
    seed: int = 1337


@dataclass
class Standing:
    """What became of one entrant so far."""

    status: str = "not run"
    reason: str | None = None
    runs: list[Run] = field(default_factory=list)


class PeersSession:
    """Measures a contest. An entrant that fails is out, with its reason; Ctrl-C keeps what was measured.

    Args:
        contest: what to measure.
        scratch: an empty folder.
        reporter: is told how it goes.
    """

    def __init__(self, contest: Contest, scratch: Path, reporter: Reporter) -> None:
        self.contest, self.scratch, self.reporter = contest, scratch, reporter
        self.standings = {name: Standing() for name in contest.entrants}
        self.interrupted = False

    def measure(self) -> Comparison:
        """Runs everything; a comparison always comes back, marked partial after Ctrl-C or if ours fails."""
        contest, begun = self.contest, time.perf_counter()
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        environment = capture(contest.task.device, ROOT)
        self.reporter.begin(contest.num_trials * len(contest.entrants))
        try:
            with Monitor(contest.task.device) as monitor:
                orders = visiting_orders(list(contest.entrants), contest.num_trials, contest.seed)
                for trial, order in enumerate(orders):
                    for position, name in enumerate(order):
                        self._visit(name, trial, position, monitor)
        except KeyboardInterrupt:
            self.interrupted = True
        return self._comparison(created, environment, time.perf_counter() - begun)

    def _visit(self, name: str, trial: int, position: int, monitor: Monitor) -> None:
        standing, what = self.standings[name], f"trial {trial + 1}/{self.contest.num_trials} of {name}"
        out_of_it = self.standings[OURS].status not in ("not run", "ok")  # then there is nothing to compare with
        if standing.status not in ("not run", "ok") or out_of_it:
            self.reporter.done(what, f"{standing.status}: {standing.reason or f'{OURS} failed'}")
            return
        self.reporter.working(what)
        try:
            run = self._run(self.contest.entrants[name], trial, position, monitor)
        except Failed as failed:
            standing.status, standing.reason = failed.status, f"trial {trial + 1}: {failed.reason}"
            self.reporter.done(what, f"{standing.status}: {failed.reason}")
            return
        standing.status = "ok"
        standing.runs.append(run)
        ms = stats.median(run.step_ms)
        rate = self.contest.task.workload.tokens_per_step / ms * 1e3
        self.reporter.done(what, f"{ms:.1f} ms/step, {rate:,.0f} tok/s; first step {run.first_step_ms / 1e3:.1f} s")

    def _run(self, entrant: Entrant, trial: int, position: int, monitor: Monitor) -> Run:
        """One process: first step, warm-up, timed steps.

        Raises:
            Failed: it did not come that far.
        """
        contest, folder = self.contest, self.scratch / "work"  # the same path every time, for the compiler's cache
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        entrant.prepare(folder)
        with Process(entrant, folder, self._environment(entrant), contest.time_limit_s) as process:
            steps = process.steps()
            first_step_ms, _ = next(steps)
            warm = warm_up(lambda times: _stretch(next(steps)[0]))
            timed = [next(steps) for _ in range(contest.task.num_steps)]
        (_, start), (_, end) = timed[0], timed[-1]
        seen = monitor.between(start, end)
        return Run(
            index=trial,
            position=position,
            first_step_ms=first_step_ms,
            warmup_steps=warm.steps,
            warmup_settled=warm.settled,
            step_ms=[ms for ms, _ in timed],
            wall_step_ms=(end - start) * 1e3 / (len(timed) - 1),
            total_ms=(time.perf_counter() - process.begun) * 1e3,
            telemetry=seen.values,
            flags=sorted([*seen.slowdown, *seen.capped, *seen.notes]),
        )

    def _environment(self, entrant: Entrant) -> dict[str, str]:
        """As a worker's, without our own sources, and with one folder for GPT-2's encoding wherever it is read from."""
        launched = Launcher(workdir=self.scratch, time_limit_s=math.inf).environment()
        launched["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        if cache := gpt2_cache():
            launched["TIKTOKEN_CACHE_DIR"] = str(cache.resolve())
        if self.contest.task.device.kind == "cpu":
            launched["CUDA_VISIBLE_DEVICES"] = ""  # for those that choose a device by themselves
        return {**launched, **entrant.environment}

    def _comparison(self, created: str, environment: dict[str, Any], seconds: float) -> Comparison:
        contest, device = self.contest, self.contest.task.device
        failed = self.standings[OURS].status != "ok"
        return Comparison(
            schema_version=SCHEMA_VERSION,
            status="partial" if self.interrupted or failed else "complete",
            created_utc=created,
            device=asdict(device) | {"capability": list(device.capability or ()) or None},
            environment=environment,
            workload=contest.settings.workload.to_dict(),
            rungs=list(contest.settings.rungs),
            precision=contest.settings.precision,
            seed=contest.seed,
            token_source=contest.token_source,
            harness={
                "num_trials": contest.num_trials,
                "num_steps": contest.task.num_steps,
                "time_limit_s": contest.time_limit_s,
                "seconds_total": seconds,
            },
            entrants={
                name: Result(
                    title=entrant.title,
                    source=entrant.source,
                    commit=entrant.commit,
                    dirty=entrant.dirty,
                    files_sha256=entrant.files_sha256,
                    command=entrant.arguments,
                    changes=entrant.changes,
                    notes=entrant.notes,
                    **vars(self.standings[name]),
                )
                for name, entrant in contest.entrants.items()
            },
        )


def _stretch(ms: float) -> Stretch:
    return Stretch(device_ms=ms, wall_ms=ms, start=0.0, end=ms / 1e3)
