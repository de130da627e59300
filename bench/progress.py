"""Progress in the terminal: a bar that moves, or plain lines where output goes to a file."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RichReporter:
    """Shows a session's steps as they end, and what is being measured now.

    Args:
        console: where to; a bar is drawn only on a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.begun = time.perf_counter()
        self.steps = self.finished = 0
        self.bar = Progress(
            TextColumn("[bold]measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def begin(self, steps: int) -> None:
        self.steps = steps
        self.task = self.bar.add_task("", total=steps)

    def working(self, what: str) -> None:
        self.bar.update(self.task, description=what)

    def done(self, what: str, outcome: str) -> None:
        self.finished += 1
        self.bar.advance(self.task)
        elapsed = time.strftime("%M:%S", time.gmtime(time.perf_counter() - self.begun))
        self.console.print(
            f"[{self.finished}/{self.steps} {elapsed}] {what}: {outcome}", highlight=False, markup=False, soft_wrap=True
        )

    def __enter__(self) -> "RichReporter":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
