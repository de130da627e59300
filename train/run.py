"""Puts a run together, from a recipe or from where it stopped, and sees it to its end."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data import tokenizers
from data.dataset import Dataset
from data.files import write_atomically
from data.prepare import dataset
from hardware import Device, Monitor, datasheet_peaks
from hardware.environment import git_state
from model.flops import flops_per_token, num_parameters
from optim_ladder import Settings, TrainStep, build
from results import Record
from train import checkpoint
from train.checkpoint import Checkpoint
from train.lock import RunLock
from train.loop import Loop, Progress
from train.ranks import Ranks
from train.recipe import Recipe, fixed_part
from train.setup import Share, choose_rungs, measured_best, share, usual_micro_batch, workload
from train.state import check_matches, template, unpack
from train.stop import StopRequest
from train.watch import Watch

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS, RECIPE, TOKENIZER = "checkpoints", "recipe.toml", "tokenizer.json"
PREPARING_EVERY_S = 10.0
LIKELY_VOCAB_SIZE = 50257  # for checks that come before the text is read


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Args:
        reason: "finished", or the name of the signal that stopped it.
        exit_code: 0, or 128 + the signal's number.
        step: optimizer steps taken in all.
        tokens_per_second: median of this start's steps, all processes together; None where there were none.
        validation_loss: the last one, nats per token; None where there was none.
    """

    reason: str
    exit_code: int
    step: int
    tokens_per_second: float | None
    validation_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for.

    Args:
        recipe: what to train.
        device: where.
        run_dir: where the run's files go.
        corpora: where prepared data is, or will be.
        records: what was measured: for `best`, and for the peak that MFU on a processor is held against.
        resume: go on from the newest checkpoint in run_dir; where there is none the run begins.
        best: take the rungs that measured best on this device.
        without: rungs to leave out.
        tuned: the fastest micro-batch known for settings, or None.
    """

    recipe: Recipe
    device: Device
    run_dir: Path
    corpora: Path
    records: Sequence[tuple[Path, Record]] = ()
    resume: bool = False
    best: bool = False
    without: Iterable[str] = ()
    tuned: Callable[[Settings], int | None] = lambda settings: None


def train(request: Request, console: Console) -> Outcome:
    """Trains a recipe, alone or under torchrun as one of several processes.

    Raises:
        ValueError: anything the user can mend, in one line.
    """
    recipe, device, run_dir = request.recipe, request.device, request.run_dir
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    resume = request.resume or restarted
    with ExitStack() as stack:
        ranks = Ranks(device, time_limit_s=recipe.train.time_limit_s, stacks=run_dir / "stacks")
        stack.enter_context(ranks)
        say = partial(console.print, soft_wrap=True, highlight=False, markup=False) if ranks.first else lambda line: None
        _settings(request, LIKELY_VOCAB_SIZE, ranks, lambda line: None)  # what is wrong with it is said before hours of preparing
        lock = stack.push(RunLock(run_dir))
        ranks.first_does(lambda: _claim(lock, resume, request.resume))
        newest = _newest_of_all(run_dir, ranks, say) if resume else None
        state = ranks.agreed(newest.state if newest else None)
        if state is not None:
            _check_same_recipe(state, recipe, say)

        ranks.at("preparing data")
        text = _data(request, ranks, say)
        tokenizer = text.tokenizer()
        _check_usable(recipe, text)
        stop = stack.enter_context(StopRequest())  # until here a signal just ends it: what is prepared is kept
        if state is not None:
            _check_same_text(state, text)
            say(f"going on from step {state['progress']['step']} of {run_dir}")
        elif resume:
            say(f"{run_dir} has no checkpoint yet: beginning at step 0")

        settings, cut = _settings(request, tokenizer.vocab_size, ranks, say)
        ranks.at("building the model")
        step = stack.enter_context(
            build(
                settings,
                device,
                seed=recipe.train.seed,
                optimizer=recipe.train.optimizer(),
                dropout=recipe.model.dropout,
            )
        )
        progress = Progress()
        if state is not None:
            _restore(step, newest, ranks)
            if state["scaler"]:
                step.scaler.load_state_dict(state["scaler"])
            progress = Progress.from_dict(state["progress"])
        _say_what(say, request, settings, cut, text, step)
        watch = monitor = None
        if ranks.first:
            monitor = stack.enter_context(Monitor(device, index=ranks.local_rank))
            watch = stack.enter_context(_watch(request, console, progress.step if state is not None else None))
            watch.event(
                "start", progress.step, settings=settings.to_dict(), device=device.name, world_size=ranks.world_size,
                resumed=state is not None, recipe=recipe.to_dict(), dataset=_identity(text), torch=str(torch.__version__),
                commit=git_state(ROOT)["commit"],
            )  # fmt: skip
        flops, peak = _speed_limits(request, step, ranks.world_size)
        loop = Loop(
            recipe=recipe,
            step=step,
            share=cut,
            dataset=text,
            tokenizer=tokenizer,
            ranks=ranks,
            stop=stop,
            progress=progress,
            run_dir=run_dir,
            watch=watch,
            monitor=monitor,
            constant=_constant(recipe, settings, step, text),
            flops_per_token=flops,
            peak_flops=peak,
        )
        if ranks.first:
            tokenizers.save(tokenizer, run_dir / TOKENIZER)
            write_atomically(run_dir / RECIPE, recipe.to_toml().encode())
        with _in_one_line(settings, ranks):
            reason = loop.run()
        if watch:
            watch.event("stop", progress.step, reason=reason)
        return Outcome(
            reason=reason,
            exit_code=0 if reason == "finished" else stop.exit_code or 1,
            step=progress.step,
            tokens_per_second=loop.tokens_per_second,
            validation_loss=loop.last_validation,
        )


def _claim(lock: RunLock, resume: bool, asked: bool) -> None:
    """Takes the run's folder for this run alone; what an earlier one began there is not begun anew.

    torchrun starts processes again with the command they began with, without --resume: that is this run if the folder says so.
    """
    lock.__enter__()
    checkpoints, launch = lock.run_dir / CHECKPOINTS, lock.run_dir / ".launch"
    this = os.environ.get("TORCHELASTIC_RUN_ID", "")
    ours = resume and (asked or (launch.exists() and launch.read_text() == this))
    if checkpoints.is_dir():
        checkpoint.clean_leftovers(checkpoints)  # first: it may bring back the only one
        if not ours and any(checkpoints.glob("step-*")):
            raise ValueError(f"{lock.run_dir} already holds a run; go on with --resume, or choose another --run-dir")
    write_atomically(launch, this.encode())


def _newest_of_all(run_dir: Path, ranks: Ranks, say: Callable[[str], object]) -> Checkpoint | None:
    """The newest whole checkpoint on the first process's disk; None where the run has not written one yet.

    Raises:
        ValueError: all are damaged, or another machine holds a newer one.
    """
    found: list[Checkpoint | None] = []
    ranks.first_does(lambda: found.append(_newest(run_dir, say)))
    newest = found[0] if found else None
    here = max((int(p.name.removeprefix("step-")) for p in (run_dir / CHECKPOINTS).glob("step-*") if p.is_dir()), default=0)
    steps, mine = ranks.gathered(here), ranks.agreed(newest.step if newest else 0)
    if max(steps) > max(mine, steps[0]):
        raise ValueError(
            f"rank {steps.index(max(steps))} sees step {max(steps)} in {run_dir}, rank 0 only step {mine}; share the folder, or "
            "copy it to the machine of rank 0"
        )
    return newest


def _newest(run_dir: Path, say: Callable[[str], object]) -> Checkpoint | None:
    checkpoints = run_dir / CHECKPOINTS
    found = checkpoint.newest(checkpoints, warn=say)
    if found is None and any(checkpoints.glob("step-*")):
        raise ValueError(f"every checkpoint in {checkpoints} is damaged; move them away to begin anew")
    if found is not None and (best := found.state["progress"]["best_step"]) is not None:
        with suppress(checkpoint.CheckpointError):  # a kill may have come between saving the best one and marking it
            checkpoint.mark_best(checkpoints, best)
    return found


def _check_usable(recipe: Recipe, text: Dataset) -> None:
    """What the run will need later on is there now.

    Raises:
        ValueError: the corpus has no validation split, or the tokenizer no ids for the prompt.
    """
    if recipe.validation.every:
        text.shards("val")
    if recipe.samples.every:
        try:
            text.tokenizer().encode([recipe.samples.prompt])
        except ValueError as error:
            raise ValueError(f"samples.prompt cannot be tokenized: {error}; choose another with --set samples.prompt=…") from None


def _check_same_recipe(state: dict[str, Any], recipe: Recipe, say: Callable[[str], object]) -> None:
    """A resumed run trains the same model on the same tokens; what may change and did is said.

    Raises:
        ValueError: names what differs and must not.
    """
    before = Recipe.from_dict(state["recipe"])
    then, now = fixed_part(before), fixed_part(recipe)
    for key in now:
        if then[key] != now[key]:
            raise ValueError(
                f"{key} is {now[key]!r}, but the run began with {then[key]!r}; leave it as it was, or begin anew in another --run-dir"
            )
    for key, value in asdict(recipe.train).items():
        if (old := asdict(before.train)[key]) != value:
            say(f"changed: train.{key} is {value!r}, was {old!r}")


def _check_same_text(state: dict[str, Any], text: Dataset) -> None:
    """A resumed run goes on in the text it began with.

    Raises:
        ValueError: names what differs.
    """
    before, here = state["dataset"], _identity(text)
    for key, what in (("tokenizer_sha256", "tokenizer"), ("vocab_size", "vocabulary"), ("shards_sha256", "text")):
        if before[key] != here[key]:
            raise ValueError(
                f"the {what} in {text.folder} is not the one the run began with ({str(here[key])[:12]} against "
                f"{str(before[key])[:12]}); put the run's own back, or begin anew in another --run-dir"
            )


@contextmanager
def _in_one_line(settings: Settings, ranks: Ranks) -> Iterator[None]:
    """Turns what a user can mend, and PyTorch tells at length, into a line."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in words or "out of memory" in words:
            w = settings.workload
            raise ValueError(
                f"out of memory at micro-batch {w.micro_batch} × {w.seq_len} tokens; lower train.micro_batch, or let stepladder tune find one"
            ) from error
        if ranks.world_size > 1 and any(word in words for word in ("closed by peer", "reset by peer", "nccl", "gloo")):
            raise ValueError(f"rank {ranks.rank} has lost another process, which says why; start again with --resume") from error
        raise


def _data(request: Request, ranks: Ranks, say: Callable[[str], object]) -> Dataset:
    """The recipe's dataset, prepared by the first process where it has to be; every machine needs it on a disk it sees."""
    config = request.recipe.data
    told, last = time.monotonic(), None

    def report(what: str, done: int, total: int | None) -> None:
        nonlocal told, last
        ranks.at(f"preparing {what}")
        if what != last or time.monotonic() - told > PREPARING_EVERY_S:
            told, last = time.monotonic(), what
            say(what + (f", {done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if total else ""))

    def found() -> Dataset:
        return dataset(config.corpus, config.tokenizer or None, corpora=request.corpora, progress=report)

    ranks.first_does(lambda: found() and None)
    text = found()
    for rank, other in enumerate(ranks.gathered(_identity(text))):
        if other != _identity(text):
            raise ValueError(
                f"rank {rank} has other text than rank {ranks.rank} ({other['corpus']} {other['corpus_version']} against "
                f"{text.info['corpus_version']}); copy the prepared folder to every machine"
            )
    return text


def _identity(text: Dataset) -> dict[str, Any]:
    """What tells one dataset from another, in a few lines."""
    kept = ("corpus", "corpus_version", "tokenizer", "tokenizer_sha256", "vocab_size", "num_tokens")
    shards = hashlib.sha256(json.dumps(text.info["shards"], sort_keys=True).encode()).hexdigest()
    return {**{key: text.info[key] for key in kept}, "shards_sha256": shards}


def _settings(
    request: Request, vocab_size: int, ranks: Ranks, say: Callable[[str], object]
) -> tuple[Settings, Share]:
    """This process's settings, and how all of them share a step."""
    recipe, device, world = request.recipe, request.device, ranks.world_size
    some = workload(recipe, vocab_size, micro_batch=1, accumulation=1, world_size=world)
    def choose() -> tuple[str, ...]:
        names: Sequence[str] = recipe.train.rungs
        if request.best:
            measured = measured_best(request.records, device, some)
            names = measured.rungs
            for line in measured.told:
                say(line)
        return choose_rungs(names, device, some, without=request.without)

    rungs = ranks.first_does(choose)  # the same ones everywhere, whatever other machines would choose
    micro_batch = recipe.train.micro_batch
    if not micro_batch and not recipe.train.micro_batches:
        tuned = request.tuned(Settings(workload=some, rungs=rungs))
        micro_batch = ranks.agreed(usual_micro_batch(recipe.train, device, some, tuned=tuned))
    cut = share(recipe.train, micro_batch=micro_batch, world_size=world)
    mine = workload(
        recipe, vocab_size, micro_batch=cut.micro_batches[ranks.rank], accumulation=cut.accumulation, world_size=world
    )
    return Settings(workload=mine, rungs=rungs), cut


def _restore(step: TrainStep, found: Checkpoint | None, ranks: Ranks) -> None:
    """Puts the first process's checkpoint into every process's model and optimizer, whatever disks they see."""
    tensors = found.tensors if found else template(step)
    ranks.first_does(lambda: check_matches(step, tensors))
    for named in tensors.values():
        for name, tensor in sorted(named.items()):
            ranks.broadcast_(tensor)
    unpack(step, tensors)


def _constant(recipe: Recipe, settings: Settings, step: TrainStep, text: Dataset) -> dict[str, Any]:
    """What every checkpoint says beside tensors and progress: enough to sample from it, to go on, and to know its origin."""
    return {
        "recipe": recipe.to_dict(),
        "settings": settings.to_dict(),
        "model": {"name": recipe.model.name, "config": asdict(step.model.config)},
        "dataset": _identity(text),
        "torch": str(torch.__version__),
    }


def _watch(request: Request, console: Console, resumed_at: int | None) -> Watch:
    recipe = request.recipe
    return Watch(
        request.run_dir,
        total_steps=recipe.train.steps,
        console=console,
        tensorboard=recipe.watch.tensorboard,
        trackio=recipe.watch.trackio,
        resumed_at=resumed_at,
        name=request.run_dir.name,
    )


def _speed_limits(request: Request, step: TrainStep, world_size: int) -> tuple[float | None, float | None]:
    """(FLOPs per token, the device's peak FLOP/s over all processes) for MFU; None where one is not known."""
    w = step.settings.workload
    if not w.is_transformer or step.settings.quantised:
        return None, None
    datasheet = datasheet_peaks(request.device)
    rates = (datasheet or {}).get("tflops", {})
    peak = rates.get("bf16") or rates.get("fp16")
    if peak is None:  # a processor has no data sheet: what was measured last
        measured = [r for _, r in request.records if r.device["slug"] == request.device.slug and r.mfu_peak]
        newest = max(measured, key=lambda r: r.created_utc, default=None)
        peak = newest.mfu_peak["tflops"] if newest else None
    flops = flops_per_token(w.model_config(), w.seq_len)["full"]
    return flops, peak * 1e12 * world_size if peak else None


def _say_what(
    say: Callable[[str], object], request: Request, settings: Settings, cut: Share, text: Dataset, step: TrainStep
) -> None:
    """Three lines that tell a user what is about to run."""
    t, w = request.recipe.train, settings.workload
    each = "+".join(map(str, cut.micro_batches)) if len(set(cut.micro_batches)) > 1 else str(w.micro_batch)
    processes = f" × {w.world_size} processes" if w.world_size > 1 else ""
    parameters = num_parameters(w.model_config())
    say(f"{request.recipe.model.name}, {parameters:,} parameters, on {request.device.name}: {settings.id}")
    say(
        f"{t.tokens_per_step:,} tokens a step = micro-batch {each} × {t.seq_len} tokens × {cut.accumulation} "
        f"accumulated{processes}; {t.steps:,} steps, {t.steps * t.tokens_per_step:,} tokens"
    )
    say(f"{text.info['corpus']} in {text.info['tokenizer']}: {text.info['num_tokens']['train']:,} tokens to train on")
