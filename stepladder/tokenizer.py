"""`stepladder tokenizer`: trains a byte-pair encoding on a corpus and keeps it; shows one that is kept."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from data.tokenizers import Tokenizer

CORPORA = Path(__file__).resolve().parent.parent / "corpora"
MEASURED_CHARACTERS = 10_000_000  # of the validation split; more gives the same bytes per token
TEXTS_AT_ONCE = 64

app = typer.Typer(
    name="tokenizer", help="Train a tokenizer on a corpus, or show one.", no_args_is_help=True, add_completion=False
)

Folder = Annotated[Path, typer.Option("--corpora", metavar="DIR", help="The folder of prepared data.")]


@app.command()
def train(
    corpus: Annotated[str, typer.Option(metavar="NAME", help="A corpus by name, or a text file or folder.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call it, e.g. my-8k.")],
    vocab_size: Annotated[int, typer.Option(metavar="N", help="Ids in all: 256 bytes, merges, one mark.")] = 8192,
    corpora: Folder = CORPORA,
    force: Annotated[bool, typer.Option("--force", help="Replace a tokenizer of the same name.")] = False,
) -> None:
    """Train a byte-pair encoding on the training split of a corpus, and keep it in corpora/tokenizers/NAME.json.
    Use it with: stepladder prepare CORPUS --tokenizer NAME."""
    from data import tokenizers
    from data.corpora import corpus as find_corpus

    path = tokenizers.saved_path(name, corpora)
    if path.exists() and not force:
        raise ValueError(f"{path} exists; choose another --name, or replace it with --force")
    trainer = tokenizers.bpe_trainer(vocab_size)
    source, raw = find_corpus(corpus), corpora / "raw"
    source.fetch(raw, print_progress)
    source.version(raw)  # reads every file once, so that one that is no text is named before the work begins
    tokenizer = replace(trainer(source.documents(raw, "train")), name=name)
    tokenizers.save(tokenizer, path)
    typer.echo(f"{path}")
    describe(tokenizers.load(path))
    compression = bytes_per_token(tokenizer, source.documents(raw, "val"))
    typer.echo(f"bytes per token  {compression:.3f} on the val split of {source.name}")
    if tokenizer.vocab_size < vocab_size:
        typer.echo(f"{source.name} has too few repeated pairs for {vocab_size} ids", err=True)


@app.command()
def show(
    tokenizer: Annotated[str, typer.Argument(metavar="NAME", help="A kept one, gpt2, bytes, or the path of a .json.")],
    text: Annotated[str | None, typer.Argument(help="A text to see the tokens of.")] = None,
    corpora: Folder = CORPORA,
) -> None:
    """Show a tokenizer's size and hash, and how it cuts a text."""
    from data.tokenizers import resolve

    found = resolve(tokenizer, corpora=corpora, texts=no_texts)
    describe(found)
    if text is not None:
        (ids,) = found.encode([text])
        for i in ids:
            typer.echo(f"{i:>8}  {found.decode([i])!r}")


def describe(tokenizer: "Tokenizer") -> None:
    typer.echo(f"vocabulary       {tokenizer.vocab_size:,}")
    typer.echo(f"end of text      {tokenizer.eot}")
    typer.echo(f"sha256           {tokenizer.sha256}")


def bytes_per_token(tokenizer: "Tokenizer", texts: Iterable[str]) -> float:
    """How many UTF-8 bytes of some texts a token stands for on average."""
    from data.tokenizers import first_characters

    num_bytes = num_tokens = 0
    texts = first_characters(texts, MEASURED_CHARACTERS)
    while batch := list(itertools.islice(texts, TEXTS_AT_ONCE)):
        num_bytes += sum(len(text.encode()) for text in batch)
        num_tokens += sum(map(len, tokenizer.encode(batch)))
    return num_bytes / max(num_tokens, 1)


def no_texts(split: str) -> Iterable[str]:
    raise ValueError("this tokenizer is made from a corpus: make it with stepladder tokenizer train, and give its name")


def print_progress(name: str, done: int, total: int | None) -> None:
    typer.echo(f"{name}: {done / 1e6:,.0f} of {'?' if total is None else f'{total / 1e6:,.0f}'} MB", err=True)
