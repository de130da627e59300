"""``metrics.jsonl``: what happened in a run, appended line by line; `results.runs` reads it, and says what it holds.

A line costs microseconds and is never waited for: it goes to the operating system in one write, without an fsync. It
outlives the process from then on, kill -9 included; only a power cut can take the last seconds of it.
"""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results.runs import METRICS, parse


class MetricsFile:
    """The metrics file of one run, open for appending; one process writes it.

    Args:
        run_dir: the run's folder; made if missing.
        resumed_at: the step a resumed run goes on from; later rows are dropped, for the steps will be taken again. None
            for a run that starts afresh: rows that are there already are set aside as ``metrics.1.jsonl`` and so on.
        warn: called with one line, once, if rows cannot be written. A full disk must not end a training run.

    Raises:
        ValueError: the file cannot be opened.
    """

    def __init__(self, run_dir: Path, *, resumed_at: int | None, warn: Callable[[str], object]) -> None:
        self.path = Path(run_dir) / METRICS
        self.reached: int | None = None  # the last step that any earlier start of the run had reached
        self.num_lost = 0
        self._warn = warn
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if resumed_at is None:
                _set_aside(self.path)
            elif self.path.exists():
                self.reached = _rewind(self.path, resumed_at)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            remedy = "mend that, or choose another folder with --run-dir"
            raise ValueError(f"cannot write {self.path}: {error.strerror}; {remedy}") from error
        self._size = os.fstat(self._file).st_size

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row, whole or not at all."""
        line = _line(row)
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes written")
            self._size += written
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)  # or the next row would be glued to what this one left
            self.num_lost += 1
            if self.num_lost == 1:
                reason = error.strerror or error
                self._warn(f"{self.path}: {reason}; the run goes on, rows are lost until this is mended")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _line(row: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(row, allow_nan=False, default=_plain)
    except ValueError:  # rare, so that the common case is not searched
        text = json.dumps(_spelled(row), allow_nan=False)
    return (text + "\n").encode("ascii")  # so that no letter in a sample can pass for the end of a line


def _plain(value: Any) -> Any:
    """A scalar of another library as Python's own, anything else (a path, a type) as its text."""
    return value.item() if hasattr(value, "item") else str(value)


def _spelled(value: Any) -> Any:
    """The same with "nan", "inf" and "-inf" in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _spelled(_plain(value))


def _set_aside(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        names = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def _rewind(path: Path, step: int) -> int:
    """Leaves the whole rows up to a step, put in the file's place at once; returns the last step ever reached."""
    temporary, reached = path.with_name(f".{path.name}.{os.getpid()}.tmp"), 0
    try:
        with open(path, "rb") as old, open(temporary, "wb") as new:
            for line in old:
                if (row := parse(line)) is None:
                    continue
                said = row.get("reached")
                reached = max(reached, row["step"], said if type(said) is int else 0)
                if row["step"] <= step:
                    new.write(line.rstrip(b"\n") + b"\n")
            new.flush()
            os.fsync(new.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return reached
