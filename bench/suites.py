"""Everything that `pytest --benchmark --suite NAME` can measure.

A suite is a function that makes a `Plan` out of what a user asked for, a `Session` that measures it, and the jobs that
a worker process does for it. To add one: those three, and its line in `SUITES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench import kernels, kernels_jobs, kernels_session, ladder, ladder_jobs, profile_jobs, sampling, sampling_jobs
from bench.plan import Plan, Schedule
from bench.session import Session
from hardware import Device

Job = Callable[[dict[str, Any], float], dict[str, Any]]  # (job, time.perf_counter when the process began) -> result


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One kind of measurement.

    Args:
        plan: (device, keywords of the command line) -> what to measure; the same keywords for every suite, see
            `ladder.make_plan`.
        session: measures a plan.
        jobs: kind -> what a worker does for it; "trial", whatever the session's `check` asks for, and "profile" for
            `stepladder profile`.
        unavailable: device -> None, or why nothing of the suite can be measured there.
        schedule: device -> how much is measured there, if nothing else is asked for.
    """

    plan: Callable[..., Plan]
    session: type[Session]
    jobs: Mapping[str, Job]
    unavailable: Callable[[Device], str | None] = lambda device: None
    schedule: Callable[[Device], Schedule] = Schedule.default


SUITES: dict[str, Suite] = {
    "ladder": Suite(
        plan=ladder.make_plan,
        session=ladder.LadderSession,
        jobs={"parity": ladder_jobs.parity, "trial": ladder_jobs.trial, "profile": profile_jobs.profile},
    ),
    "sampling": Suite(
        plan=sampling.make_plan,
        session=sampling.SamplingSession,
        jobs={"check": sampling_jobs.check, "trial": sampling_jobs.trial},
        schedule=sampling.usual_schedule,
    ),
    "kernels": Suite(
        plan=kernels.make_plan,
        session=kernels_session.KernelsSession,
        jobs={"check": kernels_jobs.check, "trial": kernels_jobs.trial},
        unavailable=kernels.unavailable,
    ),
}
