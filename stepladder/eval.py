"""`stepladder eval`: how good a model is, by its loss on a text or by HellaSwag; under torchrun on many GPUs."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from stepladder.evaluation import Meter, Session, computing, session, stoppable, text_for
from stepladder.loading import KINDS, Loaded, load_model, memory_in_one_line
from stepladder.prepare import CORPORA, Reporter

if TYPE_CHECKING:
    from data.dataset import Dataset
    from evals import TextLoss
    from evals.hellaswag import Score

DEFAULT_TOKENS = 1_000_000
MOST = 1_000_000  # tokens of a sequence, or sequences: more than any memory holds
DEFAULT_SEQ_LEN = 256  # of a model without a longest sequence
# In a forward pass: what keeps a GPU busy, with room for the logits: GPT-2's take 1.6 GB at 8,192 tokens. A processor gains
# nothing by more than its caches hold.
BATCH_TOKENS = {"cuda": 8192, "mps": 4096, "cpu": 1024}

app = typer.Typer(
    name="eval", help="Evaluate a model: its loss on a text, or HellaSwag.", no_args_is_help=True, add_completion=False
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{', '.join(KINDS)}; gpt2 is any size of it trained here.")
]
Ckpt = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        show_default=False,
        help="A run (its best checkpoint), a checkpoint, or a folder made by stepladder convert. For gpt2-pretrained: "
        "gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder in Hugging Face's layout; default: gpt2.",
    ),
]
Rungs = Annotated[
    str,
    typer.Option(
        metavar="A,B", show_default=False, help="Rungs to compute with, e.g. bf16,flash. Default: none, exact fp32."
    ),
]
Kind = Annotated[str | None, typer.Option(metavar="KIND", help="cuda, mps or cpu instead of the best there is.")]
Corpora = Annotated[
    Path, typer.Option(metavar="DIR", show_default=False, help="Where prepared data is kept; default: corpora/.")
]


@app.command()
def hellaswag(
    model: Model,
    ckpt: Ckpt = None,
    scoring: Annotated[str, typer.Option(help="plain, lm-eval, or both.")] = "both",
    items: Annotated[int, typer.Option(metavar="N", min=0, help="The first N items; 0 takes all.")] = 0,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Items in HellaSwag's format, instead of its 10,042 own.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens of a forward pass; lower it where memory is short.")
    ] = None,
    rungs: Rungs = "",
    device: Kind = None,
    corpora: Corpora = CORPORA,
) -> None:
    """Which of four endings of a text does the model find likeliest? With what was published of OpenAI's weights.

    The items are downloaded once, to corpora/raw/hellaswag/hellaswag_val.jsonl, or put there by hand.

    Several GPUs: torchrun --standalone --nproc_per_node=8 -m stepladder eval hellaswag …
    """
    from data.hellaswag import fetch, read
    from evals.hellaswag import SCORINGS, context_limit, evaluate, questions
    from optim_ladder import unknown

    if scoring not in (*SCORINGS, "both"):
        raise unknown("scoring", scoring, (*SCORINGS, "both"))
    with session(device) as here, memory_in_one_line("lower --batch-tokens"):
        with reporter(here) as report:
            loaded = here.everywhere(lambda: load_model(model, ckpt, progress=report))
            asked = read(data or here.everywhere(lambda: fetch(corpora, report)))[: items or None]
        scores, began = [], time.perf_counter()
        with computing(loaded, rungs, here, one_shape=False) as motion, stoppable(here, "asking HellaSwag") as go_on:
            for name in SCORINGS if scoring == "both" else (scoring,):
                ready = questions(asked, loaded.tokenizer, scoring=name, limit=context_limit(loaded.model.config))
                with Meter(f"HellaSwag {name}, endings", errors(here)) as meter:
                    score = evaluate(
                        motion.logits,
                        ready,
                        target=motion.target,
                        batch_tokens=batch_tokens or BATCH_TOKENS[here.device.kind],
                        between=go_on,
                        progress=meter,
                        **here.shared(),
                    )
                scores.append(score)
        speed = len(scores) * len(asked) / (time.perf_counter() - began)
    if here.ranks.first:
        show_scores(Console(), loaded, scores, f"{motion.how} on {here.device.name}, {speed:,.1f} items/s")


@app.command()
def loss(
    model: Model,
    ckpt: Ckpt = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            show_default=False,
            help="A corpus by name, a text file or folder, or a prepared folder; default: what it was trained on.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    tokens: Annotated[
        int, typer.Option(metavar="N", min=0, help="The first N tokens of the split; 0 takes all.")
    ] = DEFAULT_TOKENS,
    seq_len: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            min=1,
            max=MOST,
            show_default=False,
            help="Tokens of a sequence; default: as in training, or the longest.",
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(metavar="B", min=1, max=MOST, help="Sequences of a forward pass; lower it where memory is short."),
    ] = None,
    rungs: Rungs = "",
    device: Kind = None,
    corpora: Corpora = CORPORA,
) -> None:
    """The mean loss per token of a text, its perplexity, and bits per byte, in which tokenizers can be compared.

    Several GPUs: torchrun --standalone --nproc_per_node=8 -m stepladder eval loss …
    """
    import numpy as np

    from data.documents import check_split
    from data.loader import validation_windows
    from data.token_bytes import token_bytes
    from evals import text_loss

    check_split(split)
    with session(device) as here, memory_in_one_line("lower --micro-batch or --seq-len"), ExitStack() as stack:
        with reporter(here) as report:
            loaded = here.everywhere(lambda: load_model(model, ckpt, progress=report))
            T = usual_seq_len(loaded, seq_len)
            # Before the text: what is wrong with it is said before hours of preparing.
            motion = stack.enter_context(computing(loaded, rungs, here, one_shape=True))
            text = here.everywhere(lambda: text_for(loaded, data, corpora, report))
        limit = tokens or sys.maxsize
        windows = validation_windows(
            text,
            split,
            seq_len=T,
            max_tokens=limit,
            batch=micro_batch or max(1, BATCH_TOKENS[here.device.kind] // T),
        )
        go_on = stack.enter_context(stoppable(here, "evaluating the loss"))
        meter = stack.enter_context(Meter(f"{text.info['corpus']} {split}, tokens", errors(here)))
        found = text_loss(
            motion.loss,
            windows,
            np.array([len(part) for part in token_bytes(loaded.tokenizer)]),
            target=motion.target,
            between=go_on,
            progress=partial(meter, total=min(limit, text.info["num_tokens"][split])),
            **here.shared(),
        )
    if here.ranks.first:
        show_loss(Console(), loaded, text, split, found, f"sequences of {T} tokens, {motion.how} on {here.device.name}")


def usual_seq_len(loaded: Loaded, asked: int | None) -> int:
    """Tokens of a sequence: what was asked for, or as in training, or the longest the model knows.

    Raises:
        ValueError: more than the model knows.
    """
    from evals.hellaswag import context_limit

    limit = context_limit(loaded.model.config)
    if asked and limit and asked > limit:
        raise ValueError(f"--seq-len is {asked}, above the {limit} positions of {loaded.name}; lower it")
    return asked or loaded.state.get("recipe", {}).get("train", {}).get("seq_len") or limit or DEFAULT_SEQ_LEN


def show_scores(console: Console, loaded: Loaded, scores: "Sequence[Score]", how: str) -> None:
    """What came out, with intervals, and beside it what was published."""
    from evals.hellaswag import PUBLISHED

    words = f"{title(loaded)} on HellaSwag, {scores[0].items:,} items"
    console.print(words, soft_wrap=True, markup=False, highlight=False)
    table = Table(box=box.SIMPLE)
    table.add_column("scoring")
    table.add_column("weights")
    for heading in ("acc", "95 %", "acc_norm", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in scores:
        low_high = [f"{low:.3f}–{high:.3f}" for low, high in score.intervals]
        cells = (f"{score.acc:.4f}", low_high[0], f"{score.acc_norm:.4f}", low_high[1])
        table.add_row(score.scoring, "this model", *cells, style="bold")
        for name, (acc, acc_norm) in PUBLISHED[score.scoring].items():
            published = ("–" if acc is None else f"{acc:.4f}", "", f"{acc_norm:.4f}", "")
            table.add_row("", f"OpenAI {name}", *published, style="dim")
    console.print(table)
    lines = [
        "plain: context + ending as they are, acc_norm by loss per token. lm-eval: activity label in front, text cleaned, "
        "acc_norm by loss per byte.",
        f"OpenAI: published figures of its weights, over all 10,042 items. Guessing gives 0.25. Here: {how}.",
    ]
    if cut := max(score.num_cut for score in scores):
        positions = loaded.model.config.n_positions
        lines.append(f"{cut:,} items have a context longer than the model's {positions} positions: cut from the left.")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def show_loss(console: Console, loaded: Loaded, text: "Dataset", split: str, found: "TextLoss", how: str) -> None:
    """What came out."""
    words = f"{title(loaded)} on {text.info['corpus']}, {split}"
    console.print(words, soft_wrap=True, markup=False, highlight=False)
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_row("loss, nats per token", f"{found.nats_per_token:.4f}", style="bold")
    table.add_row("perplexity of a token", f"{found.perplexity:,.3f}")
    table.add_row("bits per byte", f"{found.bits_per_byte:.4f}", style="bold")
    table.add_row("tokens", f"{found.tokens:,} of {text.info['num_tokens'][split]:,}")
    table.add_row("bytes of text", f"{found.text_bytes:,}")
    console.print(table)
    mark = "A newline ends a document, and counts as a byte." if text.info["eot_in_text"] else (
        "An end-of-text mark counts as a token, and stands for no byte."
    )
    for line in (f"{mark} Tokenizer: {loaded.tokenizer.name}.", f"Computed in {how}."):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def title(loaded: Loaded) -> str:
    return f"{loaded.name}, step {loaded.step:,}" if loaded.step is not None else loaded.name


def errors(here: Session) -> Console | None:
    """Where the first process shows how far it is."""
    return Console(stderr=True) if here.ranks.first else None


def reporter(here: Session) -> Reporter:
    return Reporter(Console(stderr=True, quiet=not here.ranks.first))
