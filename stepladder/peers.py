"""`stepladder peers`: whole training runs of other projects beside ours, on this device, in turn."""

import os
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from stepladder.train import CORPORA, RECORDS

if TYPE_CHECKING:
    from bench.peers.session import Contest
    from data.tokens import TokenSource
    from hardware import Device
    from optim_ladder import Settings

MOST_TOKENS = 2**23  # what more there is changes no step's time
MOST_STEPS = 180  # build-nanogpt validates again at its step 250, the warm-up among them


def peers(
    checkouts: Annotated[
        list[str], typer.Argument(metavar="NAME=DIR", help="Checkouts of nanogpt, build-nanogpt, llm.c: those to compare with.")
    ],
    best: Annotated[bool, typer.Option("--best", help="Ours with the rungs that measured best on this device.")] = False,
    rungs: Annotated[str | None, typer.Option(metavar="A,B", help="Ours with exactly these rungs; default: all that can run.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Shape that all train, instead of the device's profile's.")] = None,
    micro_batch: Annotated[int | None, typer.Option(metavar="B", help="Sequences per step.")] = None,
    seq_len: Annotated[int | None, typer.Option(metavar="T", help="Tokens per sequence.")] = None,
    trials: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Processes per program; one gives no interval.")] = 4,
    steps: Annotated[int, typer.Option(metavar="N", min=5, max=MOST_STEPS, help="Timed steps of each process.")] = 40,
    device: Annotated[str | None, typer.Option(metavar="KIND", help="cuda or cpu instead of the best there is.")] = None,
    results_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the comparison and its chart, instead of results/ and plots/.")
    ] = None,
    corpora: Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="Where prepared data is kept; default: corpora/.")] = CORPORA,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", min=1.0, help="For one process.")] = 600.0,
) -> None:
    """Compare a training run of ours with those of other projects: same model, micro-batch, sequence length and tokens.

    Each one's own program runs, in turn, with its fastest switches; Ctrl-C keeps what is measured. The comparison is
    kept under results/peers, its chart with the others.
    """
    from bench.peers.known import checkouts as parse
    from bench.peers.session import PeersSession
    from bench.progress import RichReporter
    from data.tokens import load_tokens
    from hardware import detect
    from plots.peers_table import peers_table
    from results import check_writable
    from results import peers as store
    from stepladder.profile import draw

    if "RANK" in os.environ:
        raise ValueError("stepladder peers times one process at a time; start it without torchrun")
    if best and rungs is not None:
        raise ValueError("--best and --rungs both say which rungs to use; give one of them")
    console, found, here = Console(), parse(checkouts), detect(device)
    records = RECORDS if results_dir is None else results_dir / "records"
    changes = {"model": model, "micro_batch": micro_batch, "seq_len": seq_len}
    settings = settle(here, {key: value for key, value in changes.items() if value is not None}, best, rungs, console)
    check_writable(store.folder(records))
    source = load_tokens(settings.workload.vocab_size, corpora=corpora, progress=console.print)
    contest = prepared(here, settings, found, source, num_steps=steps, num_trials=trials, time_limit_s=time_limit)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    try:
        with tempfile.TemporaryDirectory(prefix="stepladder-") as scratch, RichReporter(console) as reporter:
            compared = PeersSession(contest, Path(scratch), reporter).measure()
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print(peers_table(compared))
    ratios = [row for row in store.rows(compared) if row.ours_over is not None]
    if ratios:
        _say(console, f"comparison: {store.write(compared, store.folder(records))}")
        draw(console, records, results_dir)
    else:
        _say(console, "nothing could be compared, nothing is saved")
    raise typer.Exit(130 if compared.status == "partial" and ratios else 0 if ratios else 1)


def settle(device: "Device", changes: Mapping[str, Any], best: bool, rungs: str | None, console: Console) -> "Settings":
    """What all train, and ours with which rungs, settled as `train` settles it.

    Raises:
        ValueError: an unknown name, a device or model that peers have no program for, a rung that cannot run here, no
            record for `best`, or no encoding of GPT-2's.
    """
    from bench.peers.entrant import GPT2_VOCAB_SIZE
    from data.bpe import installed
    from data.gpt2 import gpt2_at_hand
    from optim_ladder import Settings, profile
    from results import load_all
    from train.setup import ALL, choose_rungs, measured_best

    if device.kind not in ("cuda", "cpu"):
        raise ValueError(f"peers are compared on cuda or cpu, and this is {device.kind}; add --device cpu")
    workload = replace(profile(device)[1], **{"vocab_size": GPT2_VOCAB_SIZE, **changes})
    if not workload.is_transformer:
        raise ValueError(f"model is {workload.model!r}, which no peer has; choose a GPT-2, e.g. gpt2 or nano")
    workload = replace(workload, dropout=0.0)
    if not gpt2_at_hand():
        if not installed("tiktoken"):
            raise ValueError("ours, build-nanogpt and llm.c need tiktoken, which is not installed; pip install tiktoken")
        raise ValueError(
            "GPT-2's encoding is needed by ours, build-nanogpt and llm.c, and tiktoken's cache does not hold it; point "
            "TIKTOKEN_CACHE_DIR at a copy"
        )
    names = (ALL,) if rungs is None else tuple(part.strip() for part in rungs.split(",") if part.strip())
    if best:
        measured = measured_best(load_all(RECORDS, device.slug)[0], device, workload)
        names = measured.rungs
        for line in measured.told:
            _say(console, line)
    settings = Settings(workload=workload, rungs=choose_rungs(names, device, workload))
    w = settings.workload
    sizes = f"{w.model}, B={w.micro_batch}, T={w.seq_len}, V={w.vocab_size}"
    _say(console, f"{device.name}: {sizes}; ours with {'+'.join(settings.rungs) or 'no rungs'}")
    return settings


def prepared(
    device: "Device", settings: "Settings", found: Mapping[str, Path], source: "TokenSource", *, num_steps: int,
    **amounts: Any,
) -> "Contest":  # fmt: skip
    """Everything that is to run, before anything does.

    Raises:
        ValueError: a folder is not a checkout of what it is said to be, or there is too little text.
    """
    from bench.peers import ours
    from bench.peers.entrant import Task
    from bench.peers.known import PEERS
    from bench.peers.session import Contest
    from results.peers import OURS

    w, tokens = settings.workload, source.tokens[:MOST_TOKENS]
    if len(tokens) <= 2 * w.tokens_per_step:
        raise ValueError(
            f"there are {len(tokens):,} tokens, too few for steps of {w.tokens_per_step:,}; lower --micro-batch or --seq-len"
        )
    task = Task(device=device, workload=w, num_steps=num_steps, tokens=tokens)
    entrants = {OURS: ours.entrant(task, settings.rungs)}
    entrants |= {name: PEERS[name].entrant(checkout, task) for name, checkout in found.items()}
    return Contest(task=task, settings=settings, entrants=entrants, token_source=source.info, **amounts)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
