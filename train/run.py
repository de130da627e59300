"""Puts a run together, from a recipe or from where it stopped, and sees it to its end."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data import tokenizers
from data.dataset import Dataset
from data.files import write_atomically
from evals.hellaswag import context_limit
from hardware import Device, Monitor, datasheet_peaks
from hardware.environment import git_state
from model.flops import flops_per_token, num_parameters
from optim_ladder import Settings, TrainStep, build
from results import Record
from train import resume
from train.lock import RunLock
from train.loop import Loop, Progress
from train.ranks import Ranks
from train.recipe import Recipe
from train.setup import Share, choose_rungs, measured_best, share, usual_micro_batch, workload
from train.stop import StopRequest
from train.text import check_usable, hellaswag, identity, prepared
from train.watch import Watch

ROOT = Path(__file__).resolve().parent.parent
RECIPE, TOKENIZER = "recipe.toml", "tokenizer.json"
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
    run_dir, limit = request.run_dir, request.recipe.train.time_limit_s
    with Ranks(request.device, time_limit_s=limit, stacks=run_dir / "stacks") as ranks:
        return _train(request, console, ranks)  # a call of its own: what it has made is gone before the processes part


def _train(request: Request, console: Console, ranks: Ranks) -> Outcome:
    recipe, device, run_dir = request.recipe, request.device, request.run_dir
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    resuming = request.resume or restarted
    with ExitStack() as stack:
        say = partial(console.print, soft_wrap=True, highlight=False, markup=False) if ranks.first else lambda line: None
        # What is wrong with it is said before hours of preparing, and by one process.
        ranks.first_does(lambda: _plan(request, LIKELY_VOCAB_SIZE, ranks.world_size, say=lambda line: None))
        lock = stack.push(RunLock(run_dir))
        ranks.first_does(lambda: resume.claim(lock, resuming, asked=request.resume))
        newest = resume.newest_of_all(run_dir, ranks, say) if resuming else None
        state = ranks.agreed(newest.state if newest else None)
        if state is not None:
            ranks.first_does(lambda: resume.check_same_recipe(state, recipe, say))

        ranks.at("preparing data")
        text = prepared(recipe.data, request.corpora, ranks, say)
        tokenizer = text.tokenizer()
        ranks.first_does(lambda: check_usable(recipe, text))
        stop = stack.enter_context(StopRequest())  # until here a signal just ends it: what is prepared is kept
        if state is not None:
            ranks.first_does(lambda: resume.check_same_text(state, text))
            say(f"going on from step {state['progress']['step']} of {run_dir}")
        elif resuming:
            say(f"{run_dir} has no checkpoint yet: beginning at step 0")

        rungs, cut = ranks.first_does(lambda: _plan(request, tokenizer.vocab_size, ranks.world_size, say=say))
        w = workload(
            recipe,
            tokenizer.vocab_size,
            micro_batch=cut.micro_batches[ranks.rank],
            accumulation=cut.accumulation,
            world_size=ranks.world_size,
        )
        settings = Settings(workload=w, rungs=rungs)
        ranks.at("building the model")
        step = stack.enter_context(
            build(
                settings,
                device,
                seed=recipe.train.seed,
                optimizer=recipe.train.optimizer(),
            )
        )
        ranks.at("preparing HellaSwag")
        questions = hellaswag(recipe, request.corpora, tokenizer, context_limit(step.model.config), ranks)
        progress = Progress()
        if state is not None:
            resume.restore(step, newest, ranks)
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
                resumed=state is not None, recipe=recipe.to_dict(), dataset=identity(text), torch=str(torch.__version__),
                commit=git_state(ROOT)["commit"],
            )  # fmt: skip
        flops, peak = _speed_limits(request, step)
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
            hellaswag=questions,
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


def _plan(
    request: Request, vocab_size: int, world_size: int, *, say: Callable[[str], object]
) -> tuple[tuple[str, ...], Share]:
    """The run's rungs, and how its processes share a step.

    Raises:
        ValueError: a rung cannot run here, or the step cannot be cut up so.
    """
    recipe, device = request.recipe, request.device
    some = workload(recipe, vocab_size, micro_batch=1, accumulation=1, world_size=world_size)
    names: Sequence[str] = recipe.train.rungs
    if request.best:
        measured = measured_best(request.records, device, some)
        names = measured.rungs
        for line in measured.told:
            say(line)
    rungs = choose_rungs(names, device, some, without=request.without)
    micro_batch = recipe.train.micro_batch
    if not micro_batch and not recipe.train.micro_batches:
        tuned = request.tuned(Settings(workload=some, rungs=rungs))
        micro_batch = usual_micro_batch(recipe.train, device, some, tuned=tuned)
    return rungs, share(recipe.train, micro_batch=micro_batch, world_size=world_size)


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


def _constant(recipe: Recipe, settings: Settings, step: TrainStep, text: Dataset) -> dict[str, Any]:
    """What every checkpoint says beside tensors and progress: enough to sample from it, to go on, and to know its origin."""
    return {
        "recipe": recipe.to_dict(),
        "settings": settings.to_dict(),
        "model": {"name": recipe.model.name, "config": asdict(step.model.config)},
        "dataset": identity(text),
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


def _speed_limits(request: Request, step: TrainStep) -> tuple[float | None, float | None]:
    """(FLOPs per token, the peak FLOP/s of all devices together) for MFU; None where one is not known."""
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
    # Every process has a GPU of its own; those of one machine share its processor.
    devices = w.world_size if request.device.kind != "cpu" else w.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return flops, peak * 1e12 * devices if peak else None


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
