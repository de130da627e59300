"""`stepladder sample`: text by a trained model, written with the rungs that were measured."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from stepladder.loading import KINDS, Loaded, load_model, memory_in_one_line
from stepladder.prepare import Reporter
from stepladder.writing import read_prompt, show, stops

if TYPE_CHECKING:
    from hardware import Device
    from optim_ladder.sampling import SamplingSettings

RECORDS = Path(__file__).resolve().parent.parent / "results" / "records"
USUAL_RUNGS = ("kv_cache",)  # exact, and nothing to wait for
LESS_MEMORY = "lower -n or --max-tokens, or write with --device cpu"
MOST = 1_000_000  # samples: no machine has memory for so many
SAVES_PASSES = 4  # of a window that slides by this part of itself


def sample(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"{', '.join(KINDS)}; gpt2 is any size of it trained here.")
    ],
    ckpt: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            show_default=False,
            help="A run (its best checkpoint), a checkpoint, or a folder made by stepladder convert. For "
            "gpt2-pretrained: gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder in Hugging Face's layout; default: "
            "gpt2.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to go on from; without a prompt a new document is begun.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The prompt from a file, or with - from stdin, but for its last newline."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="The most tokens to write.")] = 200,
    num: Annotated[
        int, typer.Option("-n", "--num", metavar="N", min=1, max=MOST, help="Samples, written all at once.")
    ] = 1,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Divides the logits; 0 takes the likeliest token.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(metavar="K", help="Draw from the K likeliest tokens only; 0 draws from all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(metavar="P", help="And of those from the fewest that have this probability together; 1: all."),
    ] = 1.0,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="The same seed writes the same text.")
    ] = 1337,
    stop: Annotated[
        bool | None,
        typer.Option(
            "--stop/--no-stop",
            show_default=False,
            help="Whether a sample ends with the document; by default where the tokenizer has a mark for that.",
        ),
    ] = None,
    slide: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Tokens that leave a full window at a time; it is read anew then."),
    ] = 1,
    best: Annotated[bool, typer.Option("--best", help="The rungs that measured best on this device.")] = False,
    rungs: Annotated[
        str | None, typer.Option(metavar="A,B", show_default=False, help="Exactly these rungs; default: kv_cache.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="KIND", help="cuda, mps or cpu instead of the best there is.")
    ] = None,
) -> None:
    """Write text with a trained model. --no-RUNG (e.g. --no-kv_cache) leaves a rung out.

    Rungs: kv_cache, static_cache, compile, bf16, int8. The first three write the same text as none does.
    """
    import torch

    from hardware import detect
    from model.generate import Choice
    from optim_ladder.build_sampler import build_sampler
    from train.stop import StopRequest

    Choice(temperature=temperature, top_k=top_k, top_p=top_p)  # wrong numbers are said before a model is loaded
    given = read_prompt(prompt, prompt_file)
    options = [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    without = [left_out(argument, options) for argument in context.args]
    here = detect(device)
    with Reporter(Console(stderr=True)) as report, memory_in_one_line(LESS_MEMORY):
        loaded = within_vocabulary(load_model(model, ckpt, here.torch_device(), progress=report))
    ids = loaded.tokenizer.encode([given])[0] if given is not None else [loaded.tokenizer.eot]
    settings = choose_rungs(
        loaded, here, best=best, rungs=rungs, without=without, batch=num, room=len(ids) + max_tokens
    )
    for line in what_to_expect(loaded, settings, len(ids), max_tokens, slide):
        print(line, file=sys.stderr)
    ends = stops(loaded.tokenizer) if stop is None else stop
    with (
        memory_in_one_line(LESS_MEMORY),
        build_sampler(settings, here, model=loaded.model) as sampler,
        StopRequest() as told,
    ):
        written = sampler.write(
            torch.tensor([ids]).expand(num, -1),
            num_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            slide=slide,
            seed=seed,
        )
        show(written, loaded.tokenizer, given or "", num=num, stop=ends, told=lambda: told.name is not None)
    raise typer.Exit(told.exit_code or 0)


def left_out(argument: str, known: Sequence[str]) -> str:
    """The rung that --no-RUNG leaves out.

    Args:
        argument: as it was given.
        known: the names of all other options, to suggest one.

    Raises:
        ValueError: it is no such option.
    """
    from optim_ladder import unknown
    from optim_ladder.sampling import SAMPLING

    options = {f"--no-{r.name}".replace("_", "-"): r.name for r in SAMPLING}
    if (name := argument.replace("_", "-")) in options:
        return options[name]
    raise unknown("argument", argument, [*(name for name in known if name.startswith("--")), *options])


def within_vocabulary(loaded: Loaded) -> Loaded:
    """Ids that the tokenizer does not know are padding, and are never drawn."""
    known, config = loaded.tokenizer.vocab_size, loaded.model.config
    if known < config.vocab_size:
        loaded.model.config = replace(config, vocab_size=known, padded_vocab_size=config.rows)
    return loaded


def choose_rungs(
    loaded: Loaded,
    device: "Device",
    *,
    best: bool,
    rungs: str | None,
    without: Sequence[str],
    batch: int,
    room: int,
) -> "SamplingSettings":
    """What to write with. Of the usual rungs and the best ones those that cannot run here are left out; one that was
    named is an error.

    Raises:
        ValueError: a rung is unknown, or cannot run here; or nothing was measured that could be the best.
    """
    from model import MODELS
    from optim_ladder.sampling import SamplingSettings, SamplingWorkload, climb_sampling, sampling_rungs

    if best and rungs is not None:
        raise ValueError("--best and --rungs both say which rungs to use; give one of them")
    config = loaded.model.config
    workload = SamplingWorkload(
        model=loaded.name if loaded.name in MODELS else "gpt2",
        vocab_size=config.vocab_size,
        batch=batch,
        context=min(config.n_positions, room),
    )
    if rungs is not None:
        names = [name.strip() for name in rungs.split(",") if name.strip()]
        return SamplingSettings(workload=workload, rungs=tuple(name for name in names if name not in without))
    wanted = sampling_rungs(measured_best(device) if best else USUAL_RUNGS)
    settings, places = climb_sampling([r for r in wanted if r.name not in without], device, workload)
    for place in places:
        if place.skipped and best:
            print(f"left out: {place.label} ({place.skipped})", file=sys.stderr)
    return settings


def measured_best(device: "Device") -> list[str]:
    """The rungs that wrote fastest on this device.

    Raises:
        ValueError: there is no record of it.
    """
    from results import load_all
    from results.analysis import SAMPLING, best

    found = best(load_all(RECORDS, device.slug)[0], device.slug, suite=SAMPLING)
    if found is None:
        raise ValueError(
            f"--best needs a record of writing on {device.name}, and there is none; make one with: "
            "pytest --benchmark --suite sampling"
        )
    speed = f"{found.tokens_per_second.value:,.0f} tok/s with {found.measurement.workload['model']}"
    names = "+".join(found.measurement.rungs) or "the fp32 baseline"
    print(f"best on {device.name}: {names}, {speed} (record {found.path.name})", file=sys.stderr)
    return found.measurement.rungs


def what_to_expect(
    loaded: Loaded, settings: "SamplingSettings", length: int, num_tokens: int, slide: int
) -> Iterator[str]:
    """What a user would otherwise wonder about, a line each."""
    from model.generate import window_start

    n_positions = loaded.model.config.n_positions
    if settings.workload.is_transformer:
        if length > n_positions:
            seen = length - window_start(length, n_positions, slide)
            yield f"the prompt has {length:,} tokens; the model sees the last {seen:,}"
        if length + num_tokens > n_positions and slide == 1:
            faster = max(1, n_positions // SAVES_PASSES)
            yield (
                f"past {n_positions:,} tokens the window slides, and is read anew for every token; "
                f"--slide {faster} reads it anew for every {faster}th"
            )
    if "compile" in settings.rungs:
        yield "compiling a step, up to a minute the first time"
