"""Leaving in good order: a signal raises a flag, and the run looks at it wherever it can save and go."""

import signal
from types import FrameType
from typing import Any

# SIGUSR1 is how Slurm warns before the time is up: `sbatch --signal=USR1@120`.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Notes the first signal that asks the process to leave, from `__enter__` to `__exit__`; main thread only.

        with StopRequest() as stop:
            while not stop.name:
                ...                                   # one step
        sys.exit(stop.exit_code)

    A second SIGINT raises KeyboardInterrupt at once: whoever presses Ctrl-C twice does not want to wait.

    Attributes:
        signum: number of the first signal received, or None.

    Raises:
        ValueError: entered in another thread than the main one; Python delivers signals only there.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str | None:
        """Name of the first signal received, e.g. "SIGTERM", or None."""
        return None if self.signum is None else signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 128 + its number; 0 if none came."""
        return 0 if self.signum is None else 128 + self.signum

    def __enter__(self) -> "StopRequest":
        for signum in SIGNALS:
            self._previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
        if signum == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
