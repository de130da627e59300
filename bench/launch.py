"""Running worker processes, and telling apart the ways in which they can end."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 5.0  # between asking a worker to stop and killing it
# A cluster's or torchrun's variables, and a compiler cache that others filled, are not for our workers.
OF_ANOTHER_LAUNCH = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TRITON_CACHE_DIR"}
POLL_S = 0.2  # how soon the end of a worker is noticed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a worker ended: a result, or a status of `results.schema.STATUSES` with its reason."""

    status: str
    result: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


class Worker:
    """One running job. Some jobs stop before every block and wait for their turn; `bench.worker.Turns` is the other end.

    Attributes:
        waiting: it has stopped and waits for its turn.
        outcome: None until it has ended.
    """

    def __init__(self, process: subprocess.Popen, answer: Path, turns: Path | None, time_limit_s: float) -> None:
        self.process, self.answer, self.time_limit_s = process, answer, time_limit_s
        self.waiting = False
        self.outcome: Outcome | None = None
        # Opened for reading and writing: neither end blocks, and neither sees the other's absence as an end of file.
        self.go, self.ready = (os.open(f, os.O_RDWR) for f in turn_files(turns)) if turns else (None, None)

    def advance(self) -> bool:
        """Gives the worker its turn and waits until it wants the next one or has ended.

        Returns:
            Whether it waits for another turn.
        """
        if self.waiting:
            os.write(self.go, b"\n")
        self.waiting = self._reaches_a_turn()
        if not self.waiting:
            self.outcome = self.outcome or self._ended()
            self.close()
        return self.waiting

    def _reaches_a_turn(self) -> bool:
        deadline = time.monotonic() + self.time_limit_s
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                limit = f"no result after {self.time_limit_s:.0f} s; raise --time-limit if it is just slow"
                self.outcome = Outcome(status="hung", reason=limit)
                return False
            if self.ready is None:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(POLL_S)
            elif select.select([self.ready], [], [], POLL_S)[0]:
                os.read(self.ready, 1)
                return True
        return False

    def _ended(self) -> Outcome:
        if self.answer.exists():
            return Outcome(**json.loads(self.answer.read_text()))
        return Outcome(status="crashed", reason=describe_exit(self.process.returncode))

    def close(self) -> None:
        """Ends the process and everything it started, gently first; nothing happens where it has ended."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(self.process.pid, sign)
                    self.process.wait(GRACE_S)
        for descriptor in filter(None, (self.go, self.ready)):
            os.close(descriptor)
        self.go = self.ready = None


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts workers in one scratch folder.

    Args:
        workdir: for jobs, answers, logs and the compiler's disk cache, which all workers of a session share.
        time_limit_s: a worker that neither ends nor reaches its next turn in this time is killed: its status is "hung".
        module: what to run; tests put a faulty worker here.
    """

    workdir: Path
    time_limit_s: float
    module: str = "bench.worker"
    running: list[Worker] = field(default_factory=list)

    def start(self, name: str, job: dict[str, Any], *, world_size: int = 1, turns: bool = False) -> Worker:
        """Starts one job.

        Args:
            name: of the job's files.
            job: see `bench.worker`.
            world_size: processes, joined by torchrun when more than one.
            turns: stop before every block and wait.
        """
        job_file, answer, log_file = (self.workdir / f"{name}.{ending}" for ending in ("job", "answer", "log"))
        folder = self.workdir / f"{name}.turns" if turns else None
        if folder:
            folder.mkdir(exist_ok=True)
            for fifo in turn_files(folder):
                fifo.unlink(missing_ok=True)
                os.mkfifo(fifo)
        job_file.write_text(json.dumps({**job, "answer": str(answer), "turns": folder and str(folder)}))
        answer.unlink(missing_ok=True)
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
        worker = Worker(process, answer, folder, self.time_limit_s)
        self.running.append(worker)
        return worker

    def close(self) -> None:
        """Ends every worker that is still running."""
        for worker in self.running:
            worker.close()
        self.running.clear()

    def environment(self) -> dict[str, str]:
        cache = str(self.workdir / "compiled")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        inherited = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_LAUNCH}
        return {**inherited, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}


def turn_files(folder: Path) -> tuple[Path, Path]:
    """The two pipes of a worker that takes turns: session to worker, worker to session."""
    return folder / "go", folder / "ready"


def describe_exit(code: int) -> str:
    """Why a worker left no answer, from its exit code."""
    if code >= 0:
        return f"the worker ended with exit code {code} and no answer"
    name = signal.Signals(-code).name
    hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
    return f"the worker was ended by {name}{hint}"
