"""What evaluating a model takes, whatever is asked of it: the processes, the text, the model with its rungs, a bar."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stepladder.loading import Loaded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from data.dataset import Dataset
    from data.download import Progress as Download
    from hardware import Device
    from model import ModelConfig
    from train.ranks import Ranks

T = TypeVar("T")

RUNS = Path(__file__).resolve().parent.parent / "runs"
TIME_LIMIT_S = 1800.0
SECONDS_PER_LINE = 10.0


class Stopped(Exception):
    """Told to stop before there was a result."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """The processes of one evaluation.

    Args:
        device: what they run on.
        ranks: this one among them.
    """

    device: "Device"
    ranks: "Ranks"

    def everywhere(self, make: Callable[[], T]) -> T:
        """What a function makes, by the first process before the others: what it downloads or prepares, they find.

        Raises:
            ValueError, OSError: as the function does.
        """
        made: list[T] = []
        self.ranks.first_does(lambda: made.append(make()))
        return made[0] if made else make()

    def shared(self) -> dict[str, object]:
        """How the work is shared, for the functions in `evals`."""
        return {"rank": self.ranks.rank, "world_size": self.ranks.world_size, "add_up": self.ranks.sum_}


@contextmanager
def session(kind: str | None) -> Iterator[Session]:
    """Joins the processes that torchrun started, or is one alone.

    Args:
        kind: of device; the best there is by default.
    """
    from hardware import detect
    from train.ranks import Ranks

    device = detect(kind)
    with Ranks(device, time_limit_s=TIME_LIMIT_S, stacks=RUNS / "stacks") as ranks:
        yield Session(device=device, ranks=ranks)


@contextmanager
def stoppable(here: Session, what: str) -> Iterator[Callable[[], None]]:
    """Leaves in good order when one of the processes is told to; before it, a signal just ends them.

    Args:
        here: the processes.
        what: they do now, for those that wait.

    Returns:
        What all call alike between two batches.
    """
    from train.stop import StopRequest

    with StopRequest() as stop:

        def go_on() -> None:
            here.ranks.at(what)
            if here.ranks.any(stop.name is not None):
                raise Stopped

        try:
            yield go_on
        except Stopped:
            names = [name for name in here.ranks.gathered(stop.name) if name]
            if here.ranks.first:
                typer.echo(f"stopped by {names[0]}: there is no result", err=True)
            raise typer.Exit(stop.exit_code or 1) from None


@dataclass(frozen=True, kw_only=True)
class Computing:
    """A model in motion.

    Args:
        logits: (B, T) int64 ids -> (B, T, V), for any B and T.
        loss: ids and targets, both (B, T) -> mean cross-entropy in nats; compiled where that was asked for.
        target: where the ids must lie.
        how: in a word: fp32, or the rungs.
    """

    logits: "nn.Module"
    loss: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
    target: "torch.device"
    how: str


@contextmanager
def computing(loaded: Loaded, rungs: str, here: Session, *, one_shape: bool) -> Iterator[Computing]:
    """The model on its device, in exact fp32, or with rungs through the same `build` as training.

    Args:
        loaded: on the CPU.
        rungs: names with commas between; empty for fp32.
        here: on which device.
        one_shape: every batch has the same B and T, so that compiling pays.

    Raises:
        ValueError: a rung is unknown or cannot run here, or the model is of no size that rungs know.
    """
    from model import weights
    from optim_ladder import Settings, Workload, build, in_order
    from optim_ladder.build import true_fp32

    config = loaded.model.config
    names = tuple(name for name in rungs.split(",") if name)
    if not names:
        target = here.device.torch_device(here.ranks.local_rank)
        fused = replace(config, attention="sdpa") if hasattr(config, "attention") else config
        model = weights.filled(fused, loaded.model.state_dict()).to(target)
        with true_fp32():
            yield Computing(logits=model, loss=model, target=target, how="fp32")
        return
    compilers = [rung.name for rung in in_order(names) if rung.slot == "compiler"]
    if compilers and not one_shape:
        raise ValueError(f"rung {compilers[0]!r} cannot run here: HellaSwag's texts are of many lengths; leave it out")
    rest = {"dropout": 0.0} if hasattr(config, "dropout") else {}  # in an evaluation nothing is dropped
    workload = Workload(model=_size(config), vocab_size=config.vocab_size, seq_len=config.n_positions, **rest)
    settings = Settings(workload=workload, rungs=names)
    with build(settings, here.device) as step:
        for name, parameter in step.model.named_parameters():
            values = loaded.model.get_parameter(name)
            parameter.data[: len(values)].copy_(values)
        with step.evaluating() if one_shape else step.sampling():
            how = f"{settings.precision}, rungs {settings.id}"
            yield Computing(logits=step.model, loss=step.forward, target=step.target, how=how)


def _size(config: "ModelConfig") -> str:
    """The name of a model's size.

    Raises:
        ValueError: it is of none.
    """
    from model import MODELS

    for name, known in MODELS.items():
        if type(known) is type(config):
            resized = known.resized(vocab_size=config.vocab_size, seq_len=config.n_positions)
            if resized == (replace(config, dropout=resized.dropout) if hasattr(config, "dropout") else config):
                return name
    raise ValueError("--rungs needs a model of a size known here; this one is of its own: leave --rungs out")


def text_for(loaded: Loaded, name_or_path: str | None, corpora: Path, progress: "Download | None") -> "Dataset":
    """A text as tokens of the model's own tokenizer: as it was prepared before, or prepared now.

    Args:
        loaded: whose tokenizer.
        name_or_path: a corpus, a text file or folder, a folder of another project's shards, or a prepared one; None for
            what the model was trained on.
        corpora: folder of all prepared data.
        progress: told what is done.

    Raises:
        ValueError: it cannot be used, or was prepared with another tokenizer.
    """
    from data import foreign, tokenizers
    from data.corpora import corpus
    from data.dataset import DatasetError, open_dataset, open_foreign
    from data.prepare import prepare
    from data.shards import ShardError

    if name_or_path is None:
        name_or_path = loaded.state.get("recipe", {}).get("data", {}).get("corpus")
    if name_or_path is None:
        raise ValueError(f"{loaded.name} does not say what it was trained on: name a text with --data")
    folder, tokenizer = Path(name_or_path), loaded.tokenizer
    if (folder / "dataset.json").exists():
        text = open_dataset(folder)
        if text.info["tokenizer_sha256"] != tokenizer.sha256:
            its, own = text.info["tokenizer_sha256"][:12], tokenizer.sha256[:12]
            raise ValueError(
                f"{folder} was prepared with the tokenizer {text.info['tokenizer']!r} ({its}), {loaded.name} was trained with "
                f"{tokenizer.name!r} ({own}); give the text itself with --data"
            )
        return text
    if folder.is_dir() and any(foreign.find(folder).values()):
        return open_foreign(folder, tokenizer)
    source = corpus(name_or_path)
    source.fetch(corpora / "raw", progress)
    version = source.version(corpora / "raw")
    for description in sorted((corpora / source.name).glob("*/dataset.json")):
        with suppress(DatasetError, ShardError):  # what is damaged may be another one; its own is made again below
            text = open_dataset(description.parent)
            if (text.info["tokenizer_sha256"], text.info["corpus_version"]) == (tokenizer.sha256, version):
                return text
    with ExitStack() as stack:
        if tokenizer.to_json()["kind"] in ("gpt2", "bytes"):
            spec = tokenizer.to_json()["kind"]
        else:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()), f"{tokenizer.name}.json")
            tokenizers.save(tokenizer, place)
            spec = str(place)
        return prepare(source, spec, corpora=corpora, progress=progress)


class Meter:
    """How far an evaluation is: a bar on a terminal, elsewhere a line now and then.

    Args:
        what: is counted.
        console: where to; None shows nothing.
    """

    def __init__(self, what: str, console: Console | None) -> None:
        self.what, self.console, self.spoke = what, console, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        terminal = console is not None and console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=not terminal)
        self.task = self.bar.add_task(what, total=None)

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)
        now = time.monotonic()
        if self.console and not self.console.is_terminal and now - self.spoke > SECONDS_PER_LINE:
            self.spoke = now
            self.console.print(f"{self.what}: {done:,} of {total:,}", highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bar.stop()
