"""One entrant's process: started in its folder, read line by line while it runs, ended when enough is known."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from bench.failure import OUT_OF_MEMORY
from bench.launch import describe_exit
from bench.peers.entrant import STDOUT, Entrant

POLL_S = 0.01  # how late a line may be seen: a thousandth of what is timed
STDERR = "stderr"
LONGEST_REASON = 200  # characters
ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b|^error:")


class Failed(Exception):
    """An entrant that gives no more times; status and reason as in `results.peers.Entrant`."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Process:
    """An entrant that runs, from `__enter__` to `__exit__`, which kills it and all that it started.

    It is killed and not asked: what it would save is of no use, and saving takes longer than all of its steps.

    Args:
        entrant: what to start.
        folder: where; already prepared.
        environment: of the process.
        time_limit_s: for the whole process.
    """

    def __init__(self, entrant: Entrant, folder: Path, environment: Mapping[str, str], time_limit_s: float) -> None:
        self.entrant, self.folder, self.environment, self.time_limit_s = entrant, folder, environment, time_limit_s

    def __enter__(self) -> "Process":
        with (self.folder / STDOUT).open("wb") as out, (self.folder / STDERR).open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *self.entrant.arguments],
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # so that the group can be ended as one
            )
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def steps(self) -> Iterator[tuple[float, float]]:
        """(milliseconds that it says a step took, `time.perf_counter` when that was seen), as long as it goes on.

        Raises:
            Failed: it ended, or the time is up.
        """
        for line, seen in self._lines():
            ms = self.entrant.step_ms(line)
            if ms is not None and ms > 0:
                yield ms, seen

    def _lines(self) -> Iterator[tuple[str, float]]:
        path, file, rest = self.folder / self.entrant.log, None, b""
        try:
            while True:
                ended = self.process.poll() is not None  # asked first: what it wrote before it ended is read below
                if file is None and path.exists():
                    file = path.open("rb")
                new = file.read() if file else b""
                seen = time.perf_counter()
                *lines, rest = (rest + new).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace"), seen
                if ended:
                    raise self._failed()
                if seen - self.begun > self.time_limit_s:
                    limit = f"not enough steps after {self.time_limit_s:.0f} s; raise --time-limit if it is just slow"
                    raise Failed("hung", limit)
                if not new:
                    time.sleep(POLL_S)
        finally:
            if file:
                file.close()

    def _failed(self) -> Failed:
        """Why it ended: the last error that it named, or else the last line that it wrote."""
        code = self.process.returncode
        lines = (self.folder / STDERR).read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        errors = [line for line in said if ERROR.match(line)]
        last = (errors or said or [""])[-1].replace(f"{self.folder}{os.sep}", "")[:LONGEST_REASON]
        if code < 0:
            return Failed("crashed", describe_exit(code))
        status = "oom" if any(words in last.lower() for words in OUT_OF_MEMORY) else "crashed"
        return Failed(status, last or f"it ended with exit code {code} before it had taken enough steps")
