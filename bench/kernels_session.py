"""Measuring kernels: one process for all settings of one kernel, since starting it takes longer than a setting.

Its journal tells what it has done. When it dies, the setting whose turn it was has failed, and a new process goes on
behind it; so it does when a process has worked for half its time limit.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.launch import Outcome
from bench.session import Progress, Session, visiting_orders
from results import Check, Trial
from results.schema import from_dict


class KernelsSession(Session):
    """Measures kernels; a process for each kernel and trial."""

    def steps(self) -> int:
        return 1 + len(self.plan.rungs) * (1 + self.plan.schedule.num_trials)

    def names(self, kernel: str) -> list[str]:
        """Of a kernel's settings, in the order of the plan."""
        return [name for name, p in self.progress.items() if p.settings.workload.kernel == kernel]

    def _parity(self) -> None:
        for kernel in self.plan.rungs:
            self.reporter.working(f"check of {kernel}")
            names = [name for name in self.names(kernel) if name not in self.plan.twins]
            for name, outcome in self.together(kernel, "check", names).items():
                self._keep_check(self.progress[name], outcome)
            for twin, name in self.plan.twins.items():
                if name in names:
                    self.progress[twin] = replace(self.progress[name], first_steps_ms=[], trials=[], flags=[])
            problems = [f"{n} {p.status}: {p.reason}" for n in names if (p := self.progress[n]).status != "not run"]
            right = sum(self.progress[n].status == "not run" for n in names)
            self.reporter.done(f"check of {kernel}", "; ".join([f"{right} of {len(names)} right", *problems]))

    def _keep_check(self, p: Progress, outcome: Outcome) -> None:
        w = p.settings.workload
        p.work = p.settings.case.work(w.shape, w.direction).to_dict()
        if outcome.status != "ok":
            p.fail(outcome, "check")
            return
        p.checks = [from_dict(Check, c, "check") for c in outcome.result["checks"]]
        p.first_steps_ms = outcome.result["first_steps_ms"]
        if wrong := [c for c in p.checks if not c.value <= c.bound]:
            said = "; ".join(f"{c.what} is off by {c.value:.2g}, above {c.bound:.2g}" for c in wrong)
            p.status, p.reason = "wrong", f"against float64, {said}"

    def _trials(self) -> None:
        schedule, seed = self.plan.schedule, self.plan.seed
        of_kernels = visiting_orders(list(self.plan.rungs), schedule.num_trials, seed)
        within = {k: visiting_orders(self.names(k), schedule.num_trials, seed) for k in self.plan.rungs}
        for trial, order in enumerate(of_kernels):
            for kernel in order:
                self.reporter.working(f"trial {trial + 1}/{schedule.num_trials} of {kernel}")
                alive = [name for name in within[kernel][trial] if self.progress[name].alive]
                outcomes = self.together(kernel, "trial", alive, trial=trial, num_blocks=schedule.num_blocks)
                for name, outcome in outcomes.items():
                    self._keep_trial(self.progress[name], trial, outcome)
                self.reporter.done(f"trial {trial + 1} of {kernel}", self._describe(kernel))

    def _keep_trial(self, p: Progress, trial: int, outcome: Outcome) -> None:
        if outcome.status == "ok":
            p.trials.append(from_dict(Trial, outcome.result, "trial"))
            p.status = "wrong" if p.status == "wrong" else "ok"
        else:
            p.fail(outcome, f"trial {trial + 1}")

    def _describe(self, kernel: str) -> str:
        """The last problem's times."""
        measured = [p for name in self.names(kernel) if (p := self.progress[name]).alive and p.trials]
        if not measured:
            return "nothing measured"
        last = [p for p in measured if p.settings.problem == measured[-1].settings.problem]
        times = {p.settings.way.title: float(np.median(p.trials[-1].device_ms)) for p in last}
        return f"{last[0].settings.problem}: " + ", ".join(f"{title} {ms:.3g} ms" for title, ms in times.items())

    def together(self, kernel: str, kind: str, names: Sequence[str], **more: Any) -> dict[str, Outcome]:
        """Runs settings in one process, and in another from behind the one at which it dies or its time is up.

        Returns:
            For each setting, how it ended.
        """
        found: dict[str, Outcome] = {}
        journal = self.launcher.workdir / f"{kernel}-{kind}.journal"
        while left := [name for name in names if name not in found]:
            journal.unlink(missing_ok=True)
            settings = [(name, self.progress[name].settings.to_dict()) for name in left]
            limit_s = self.plan.schedule.time_limit_s
            job = self._job(kind, settings=settings, journal=str(journal), time_limit_s=limit_s, **more)
            worker = self.launcher.start(f"{kernel}-{kind}", job)
            worker.advance()
            answers, current = read_journal(journal)
            if current is not None:
                answers[current] = worker.outcome
            # A process that never came to a setting: the others would fare no better.
            found |= answers or dict.fromkeys(left, worker.outcome)
        return found


def read_journal(path: Path) -> tuple[dict[str, Outcome], str | None]:
    """What a process wrote: how settings ended, and the one that was begun and has not ended."""
    answers, current = {}, None
    for line in path.read_text().splitlines() if path.exists() else []:
        entry = json.loads(line)
        current = entry.get("begun")
        if "answer" in entry:
            answers[entry["name"]] = Outcome(**entry["answer"])
    return answers, current
