"""Running one worker process and telling apart the ways in which it can end."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 5.0  # between asking a worker to stop and killing it


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a worker ended: a result, or a status of `results.schema.STATUSES` with its reason."""

    status: str
    result: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts workers in one scratch folder.

    Args:
        workdir: for jobs, answers, logs and the compiler's disk cache, which all workers of a session share.
        time_limit_s: a worker that has not ended by then is killed, and its status is "hung".
        module: what to run; tests put a faulty worker here.
    """

    workdir: Path
    time_limit_s: float
    module: str = "bench.worker"

    def run(self, name: str, job: dict[str, Any], *, world_size: int = 1) -> Outcome:
        """Runs one job to its end.

        Args:
            name: of the job's files.
            job: see `bench.worker`.
            world_size: processes, joined by torchrun when more than one.
        """
        job_file, answer_file, log_file = (self.workdir / f"{name}.{ending}" for ending in ("job", "answer", "log"))
        job_file.write_text(json.dumps({**job, "answer": str(answer_file)}))
        answer_file.unlink(missing_ok=True)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        command = [sys.executable, *(torchrun if world_size > 1 else []), "-m", self.module, str(job_file)]
        with log_file.open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches the session first, and the group can be ended as one
            )
            try:
                code = process.wait(self.time_limit_s)
            except subprocess.TimeoutExpired:
                return Outcome(
                    status="hung", reason=f"no result after {self.time_limit_s:.0f} s; raise --time-limit if it is just slow"
                )
            finally:
                end(process)
        if answer_file.exists():
            return Outcome(**json.loads(answer_file.read_text()))
        return Outcome(status="crashed", reason=describe_exit(code))

    def environment(self) -> dict[str, str]:
        cache = str(self.workdir / "compiled")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}


def end(process: subprocess.Popen) -> None:
    """Ends a worker and everything it started, gently first; does nothing when it has ended."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sign)
            process.wait(GRACE_S)


def describe_exit(code: int) -> str:
    """Why a worker left no answer, from its exit code."""
    if code >= 0:
        return f"the worker ended with exit code {code} and no answer"
    name = signal.Signals(-code).name
    hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
    return f"the worker was ended by {name}{hint}"
