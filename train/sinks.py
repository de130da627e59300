"""Where else a run can be followed: TensorBoard and Trackio, only when asked for, under the same names.

    train/loss  train/norm  train/lr  train/tokens_per_second  train/mfu  val/loss
    device/temperature_c  device/power_w  device/memory_bytes  …  sample (text)  settings (text)

Both write in a thread of their own. Neither needs a network or starts a server: one looks at the results with
``tensorboard --logdir runs`` or ``trackio show``.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = "stepladder"  # the name that all runs share in Trackio


class Sink(Protocol):
    """What takes the numbers and texts of a run."""

    name: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder.

    Args:
        run_dir: the run's folder.
        resumed_at: the step the run goes on from; what was written for later steps no longer counts.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    name = "TensorBoard"

    def __init__(self, run_dir: Path, *, resumed_at: int | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard is not installed; install it with: pip install tensorboard") from error
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge, flush_secs=10)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, _fenced(text), step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run in the local Trackio database, in the folder that ``TRACKIO_DIR`` names.

    Where a Hugging Face token lies on the machine, Trackio asks the Hub once whose it is; it needs no answer.
    Trackio cannot take points back. Steps that a resumed run takes again are therefore left as they were logged the
    first time, so that here too every step is drawn once.

    Args:
        name: of the run.
        resumed_at: the step the run goes on from; None starts a new run.
        logged: the last step that any earlier start reached; steps up to it are not logged again.

    Raises:
        ValueError: Trackio is not installed, or cannot start.
    """

    name = "Trackio"

    def __init__(self, name: str, *, resumed_at: int | None, logged: int | None) -> None:
        try:
            import trackio
        except ImportError as error:
            raise ValueError("Trackio is not installed; install it with: pip install trackio") from error
        self._logged = -1 if logged is None else logged
        self._trackio = trackio
        resume = "never" if resumed_at is None else "allow"
        try:
            with _quiet():  # its own sampling of processor and GPU stays off: the run logs that already
                trackio.init(PROJECT, name=name, resume=resume, embed=False, auto_log_gpu=False, auto_log_cpu=False)
        except Exception as error:
            raise ValueError(f"Trackio cannot start: {error}; leave it off, or mend that") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._logged:
            self._trackio.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        if step > self._logged:
            self._trackio.log({name: self._trackio.Markdown(_fenced(text))}, step=step)

    def close(self) -> None:
        with _quiet():
            self._trackio.finish()


def settings_text(fields: Mapping[str, Any]) -> str:
    """What a start row says, for reading."""
    return json.dumps(fields, indent=2, ensure_ascii=False, default=str)


def _fenced(text: str) -> str:
    """Text as Markdown that shows every character as it is."""
    whole = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return "\n".join(f"    {line}" for line in whole.splitlines() or [""])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps a library's greetings, which hold control codes, from the run's output."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
