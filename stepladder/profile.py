"""`stepladder profile`: where one training step's time goes, kernel by kernel, against what it needs at least."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from stepladder.train import CORPORA, RECORDS, ROOT

if TYPE_CHECKING:
    from bench.profiling import Wish
    from results.profiles import Profile

OPTIONS = (
    "--best", "--rungs", "--model", "--micro-batch", "--seq-len", "--profile", "--device", "--steps", "--results-dir",
    "--trace", "--time-limit",
)  # fmt: skip
NUM_KERNELS = 20  # in the terminal


def profile(
    context: typer.Context,
    best: Annotated[
        bool, typer.Option("--best", help="The rungs and the micro-batch that measured best on this device.")
    ] = False,
    rungs: Annotated[
        str | None, typer.Option(metavar="A,B", help="Exactly these rungs; default: all that can run.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the profile's, e.g. gpt2.")] = None,
    micro_batch: Annotated[int | None, typer.Option(metavar="B", help="Sequences per step.")] = None,
    seq_len: Annotated[int | None, typer.Option(metavar="T", help="Tokens per sequence.")] = None,
    workload: Annotated[
        str | None, typer.Option("--profile", metavar="NAME", help="Workload of another device, e.g. a30.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="KIND", help="cuda or cpu instead of the best there is.")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps to trace.")] = 8,
    results_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the profile and its chart, instead of results/ and plots/.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the trace too, for https://ui.perfetto.dev.")
    ] = None,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", min=1.0, help="For one process.")] = 600.0,
) -> None:
    """Profile a training step: each part of the model against its bound, the three largest gaps, the longest kernels.

    --no-RUNG (e.g. --no-flash) leaves a rung out. The profile is kept in results/profiles, its chart with the others.
    """
    from bench.launch import Launcher
    from bench.profiling import measure, trace_path
    from bench.progress import RichReporter
    from data.tokens import load_tokens
    from results import check_writable, profiles

    if "RANK" in os.environ:
        raise ValueError("stepladder profile traces one process; start it without torchrun")
    if best and rungs is not None:
        raise ValueError("--best and --rungs both say which rungs to use; give one of them")
    if trace is not None and (trace.is_dir() or not trace.parent.is_dir()):
        raise ValueError(f"--trace is {str(trace)!r}; give a file in a folder that exists")
    console = Console()
    records = RECORDS if results_dir is None else results_dir / "records"
    changes = {"model": model, "micro_batch": micro_batch, "seq_len": seq_len}
    wish = wanted(
        device, workload, {key: value for key, value in changes.items() if value is not None},
        best=best, rungs=rungs, without=[left_out(argument) for argument in context.args], steps=steps, console=console,
    )  # fmt: skip
    check_writable(profiles.folder(records))
    w, names = wish.settings.workload, "+".join(wish.settings.rungs) or "none"
    _say(console, f"{wish.device.name}: {w.model}, B={w.micro_batch}, T={w.seq_len}, V={w.vocab_size}, rungs {names}")
    with tempfile.TemporaryDirectory(prefix="stepladder-") as scratch:
        launcher = Launcher(workdir=Path(scratch), time_limit_s=time_limit)
        try:
            tokens = load_tokens(w.vocab_size, corpora=CORPORA, progress=console.print)
            with RichReporter(console) as reporter:
                found = measure(wish, tokens, launcher, reporter)
        finally:
            launcher.close()
        if trace is not None:
            shutil.copyfile(trace_path(launcher), trace)
    path = profiles.write(found, profiles.folder(records))
    show(console, found)
    _say(console, f"profile: {path}")
    if trace is not None:
        _say(console, f"trace: {trace}")
    draw(console, records, results_dir)


def wanted(
    device: str | None, workload: str | None, changes: Mapping[str, Any], *, best: bool, rungs: str | None,
    without: list[str], steps: int, console: Console,
) -> "Wish":  # fmt: skip
    """What a user asked for, settled as `train` settles it.

    Args:
        device: its kind.
        workload: name of a workload's profile.
        changes: fields of the workload.
        best: take the rungs, and what is not in changes, from the fastest setting measured here.
        rungs: names with commas between; None for all that can run, or for `best`.
        without: names to leave out.
        steps: to trace.
        console: is told where the best rungs come from.

    Raises:
        ValueError: an unknown name, a rung that cannot run here, no record for `best`.
    """
    from bench.profiling import Wish
    from hardware import detect
    from optim_ladder import Settings
    from optim_ladder import profile as find_profile
    from results import analysis, load_all
    from train.setup import ALL, choose_rungs, measured_best

    here = detect(device)
    name, usual = find_profile(here, workload)
    w = replace(usual, **changes)
    names = (ALL,) if rungs is None else tuple(part.strip() for part in rungs.split(",") if part.strip())
    if best:
        records, _ = load_all(RECORDS, here.slug)
        measured = measured_best(records, here, w)
        names = measured.rungs
        for line in measured.told:
            _say(console, line)
        if (fastest := analysis.best(records, here.slug, w.model, w.seq_len)) is not None:
            of_best = {key: fastest.measurement.workload[key] for key in ("micro_batch", "grad_accumulation")}
            w = replace(w, **(of_best | dict(changes)))
    return Wish(
        device=here,
        settings=Settings(workload=w, rungs=choose_rungs(names, here, w, without=without)),
        profile=name,
        custom=bool(changes or workload or rungs is not None or without),
        num_steps=steps,
    )


def left_out(argument: str) -> str:
    """The rung that --no-RUNG leaves out.

    Raises:
        ValueError: it is no such option.
    """
    from optim_ladder import LADDER, unknown

    options = {f"--no-{r.name}".replace("_", "-"): r.name for r in LADDER}
    if (name := argument.replace("_", "-")) in options:
        return options[name]
    raise unknown("argument", argument, [*OPTIONS, *options])


def show(console: Console, found: "Profile") -> None:
    """Both tables and the sentences."""
    from plots.profile_table import kernels_table, parts_table
    from plots.profile_text import sentences

    console.print(parts_table(found))
    console.print(kernels_table(found, NUM_KERNELS))
    for i, sentence in enumerate(sentences(found)):
        _say(console, f"{i + 1}. {sentence}")


def draw(console: Console, records: Path, results_dir: Path | None) -> None:
    """The charts anew, and the README's sections where they are this repository's own."""
    from plots import gallery, readme

    charts = gallery.GALLERY if results_dir is None else results_dir / "charts"
    gallery.draw(records, charts)
    _say(console, f"charts: {charts}")
    if results_dir is None and readme.update(ROOT / "README.md", records):
        _say(console, f"tables: {ROOT / 'README.md'}")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
