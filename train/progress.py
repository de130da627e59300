"""A run as the terminal shows it: two live lines that move, or plain lines where output goes to a file.

    training  ━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━━━  1,234/5,000  24 %  0:12:33 left
    loss 4.812 · 9,100 tokens/s · MFU 41 % · lr 3.0e-04 · 61 °C · 640 W · 35.2 GiB
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

PLAIN_EVERY_S = 10.0  # between plain lines
LIVE_EVERY_S = 0.25  # between updates of the live lines
FRAMES_PER_SECOND = 2  # a frame takes about 2 ms of the processor that the training may want
SAMPLE_CHARACTERS = 300
GIB = 2**30


class TrainingProgress:
    """Shows where a run is. Nothing that happens to the terminal reaches the caller: it may vanish, the run goes on.

    Args:
        console: where to; the live lines are for a terminal alone.
        total_steps: of the whole run.
        first_step: steps taken before this start of the program.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console, *, total_steps: int, first_step: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._console, self._clock, self._total = console, clock, total_steps
        self._live = console.is_terminal and not console.is_dumb_terminal
        self._shown_at, self._doing = -math.inf, "starting"
        self._bar = _Bar(console, enabled=self._live)
        self._task = self._bar.add_task(self._doing, total=total_steps, completed=first_step, left="")
        self._pace: tuple[int, float] | None = None  # the step after the first, compiling one, and when it ended
        self._device: Mapping[str, float] = {}

    def start(self) -> None:
        with _unharmed():
            self._bar.start()

    def stop(self) -> None:
        with _unharmed():
            self._bar.stop()

    def working(self, what: str) -> None:
        """Says what goes on between steps; in plain lines only before the first one, which may take minutes."""
        if what == self._doing:  # said before every step
            return
        self._doing = what
        if self._live:
            with _unharmed():
                self._bar.update(self._task, description=what)
        elif self._pace is None:
            self.say(f"{what} …")

    def step(self, step: int, *, loss: float, lr: float, tokens_per_second: float, mfu: float | None) -> None:
        """Takes note of a step, and shows it if the last one was shown long enough ago."""
        now = self._clock()
        first = self._pace is None
        if self._pace is None:
            self._pace = (step, now)
        if not first and step < self._total and now - self._shown_at < (LIVE_EVERY_S if self._live else PLAIN_EVERY_S):
            return
        self._shown_at = now
        left = self._left(step, now)
        numbers = " · ".join([*_figures(loss, lr, tokens_per_second, mfu), *_telemetry(self._device)])
        if not self._live:
            self.say(f"step {step:,}/{self._total:,} · {numbers}{f' · {left}' if left else ''}")
            return
        self._doing = "training"
        with _unharmed():
            self._bar.numbers = self._spelled(numbers)
            self._bar.update(self._task, completed=step, description=self._doing, left=left)

    def device(self, telemetry: Mapping[str, float]) -> None:
        """Takes note of the device's state, shown with the next step."""
        self._device = telemetry

    def say(self, line: str) -> None:
        """Prints a line, above the live ones if there are any."""
        with _unharmed():
            self._console.print(self._spelled(line), markup=False, highlight=False, soft_wrap=True)

    def _spelled(self, line: str) -> str:
        """The line in characters that this terminal has."""
        return line.encode(self._console.encoding, "replace").decode(self._console.encoding)

    def _left(self, step: int, now: float) -> str:
        """How long the rest takes at the pace so far, validation and checkpoints included."""
        if self._pace is None or step <= self._pace[0] or step >= self._total:
            return ""
        return f"{clock_time((now - self._pace[1]) / (step - self._pace[0]) * (self._total - step))} left"


class _Bar(Progress):
    """Rich's bar with a line of numbers beneath it."""

    def __init__(self, console: Console, *, enabled: bool) -> None:
        self.numbers = ""
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            expand=True,
            disable=not enabled,
            refresh_per_second=FRAMES_PER_SECOND,
            redirect_stdout=enabled,
            redirect_stderr=enabled,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.numbers, no_wrap=True, overflow="ellipsis", style="dim")


def clock_time(seconds: float) -> str:
    """0:42, 12:33, 3:12:33, 2 d 3:12:33."""
    if not math.isfinite(seconds):
        return "?"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = f"{hours}:{minutes:02}:{secs:02}" if hours or days else f"{minutes}:{secs:02}"
    return f"{days} d {text}" if days else text


def printable(text: str, length: int = SAMPLE_CHARACTERS) -> str:
    """Text on one line, no longer than asked, with nothing in it that could steer a terminal."""
    flat = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _figures(loss: float, lr: float, tokens_per_second: float, mfu: float | None) -> list[str]:
    speed = f"{tokens_per_second:,.0f}" if tokens_per_second < 1e5 else f"{tokens_per_second / 1e3:,.0f}k"
    parts = [f"loss {loss:.4f}", f"{speed} tokens/s"]
    if mfu is not None:
        parts.append(f"MFU {mfu * 100:.1f} %")
    return [*parts, f"lr {lr:.2e}"]


def _telemetry(values: Mapping[str, float]) -> list[str]:
    """What is known of temperature, power and memory; the memory held at most, where that is known."""
    memory = values.get("peak_memory_bytes", values.get("memory_bytes"))
    parts = [
        f"{values['temperature_c']:.0f} °C" if "temperature_c" in values else "",
        f"{values['power_w']:.0f} W" if "power_w" in values else "",
        f"{memory / GIB:.1f} GiB" if memory is not None else "",
    ]
    return [part for part in parts if part]


@contextlib.contextmanager
def _unharmed() -> Iterator[None]:
    """Lets a failed write to the terminal pass: its pipe is closed, its disk is full, its window is gone."""
    try:
        yield
    except (OSError, SystemExit):  # rich answers a closed pipe with SystemExit
        pass
