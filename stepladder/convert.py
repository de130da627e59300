"""`stepladder convert`: a checkpoint as weights alone, as one plain file, or as a folder for transformers."""

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.disk import num_bytes, spoken

if TYPE_CHECKING:
    from torch import Tensor

    from stepladder.loading import Loaded
    from train.checkpoint import Checkpoint

FORMATS = ("weights", "safetensors", "hf")


def convert(
    ckpt: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT",
            help="A run, like runs/nano (its best checkpoint, or else its newest), or the folder of one checkpoint.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="weights: the checkpoint without the optimizer's state, to sample from and to evaluate. "
            "safetensors: model.safetensors and config.json, under the names this project uses. "
            "hf: a folder for transformers, the tokenizer included; GPT-2 only.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder that is new or empty; default: beside the run, e.g. runs/nano-hf."),
    ] = None,
) -> None:
    """Turn a checkpoint into another format. The checkpoint stays as it is."""
    from model import GPT2Config
    from optim_ladder import unknown
    from stepladder.loading import load_model, open_checkpoint

    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    found = open_checkpoint(ckpt, names=["model"])
    name = str(found.state.get("model", {}).get("name"))
    loaded = load_model(name if name.startswith("char-") else "gpt2", found.path)
    if to == "hf" and not isinstance(loaded.model.config, GPT2Config):
        raise ValueError(
            f"{found.path} holds a {name}, which transformers has no model for; use --to weights or --to safetensors"
        )
    place = out or beside(found.path, to)
    if found.path.resolve() in (place.resolve(), *place.resolve().parents):
        raise ValueError(f"{place} lies in the checkpoint itself, which stays as it is; choose another --out")
    with whole_or_not_at_all(place) as folder:
        WRITERS[to](folder, found, loaded)
    before, after = num_bytes(found.path), num_bytes(place)
    typer.echo(f"from {found.path}: {spoken(before)}, step {found.step:,}")
    typer.echo(f"to   {place}: {spoken(after)}, {after / before:.0%} of it")
    typer.echo(f"use it with: {usage(to, name, place)}")


def beside(checkpoint: Path, to: str) -> Path:
    """Where a converted checkpoint goes: beside its run, or beside itself where it is in none."""
    from train.checkpoint import CHECKPOINTS

    path = Path(os.path.abspath(checkpoint))
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path
    place = run.with_name(f"{run.name}-{to}")
    return place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place


@contextlib.contextmanager
def whole_or_not_at_all(place: Path) -> Iterator[Path]:
    """A folder to write into that becomes `place` at the end, and leaves nothing behind where that end is not reached.

    Raises:
        ValueError: something is there already.
    """
    from data import files

    place = Path(os.path.abspath(place))
    if os.path.lexists(place) and (place.is_symlink() or not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"{place} is there already, and is not an empty folder; choose another --out")
    files.make_folder(place.parent)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    os.mkdir(temporary)
    try:
        yield temporary
        for folder, _, _ in os.walk(temporary):
            files.sync_folder(Path(folder))
        files.rename(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def to_weights(folder: Path, found: "Checkpoint", loaded: "Loaded") -> None:
    """Laid out like a run, so that whatever opens a run opens it."""
    from data import tokenizers
    from train import checkpoint

    checkpoints = folder / checkpoint.CHECKPOINTS
    checkpoint.save(checkpoints, step=found.step, tensors={"model": found.tensors["model"]}, state=found.state)
    checkpoint.mark_best(checkpoints, found.step)
    tokenizers.save(loaded.tokenizer, folder / "tokenizer.json")


def to_safetensors(folder: Path, found: "Checkpoint", loaded: "Loaded") -> None:
    from data import tokenizers
    from data.files import file_sha256
    from model import plain

    write_tensors(folder / plain.WEIGHTS, loaded.model.state_dict())
    said = plain.describe(
        loaded.model.config,
        name=loaded.name,
        step=found.step,
        tokenizer_sha256=loaded.tokenizer.sha256,
        weights_sha256=file_sha256(folder / plain.WEIGHTS),
    )
    write_json(folder / plain.CONFIG, said)
    tokenizers.save(loaded.tokenizer, folder / "tokenizer.json")


def to_hf(folder: Path, found: "Checkpoint", loaded: "Loaded") -> None:
    from data import files, tokenizers
    from data.dataset import eot_in_text
    from data.hf_tokenizer import hf_files
    from model import hf, pretrained
    from stepladder.loading import HF_TOKENIZER, TOKENIZER_SHA256

    config = loaded.model.config
    tensors = hf.to_hf(loaded.model.state_dict(), config)
    del tensors[hf.HEAD]  # it is the embedding table, and transformers knows
    write_tensors(folder / pretrained.WEIGHTS, tensors)
    eot = None if eot_in_text(loaded.tokenizer) else loaded.tokenizer.eot
    said = {**hf.config_to_hf(config, eot), TOKENIZER_SHA256: loaded.tokenizer.sha256}
    write_json(folder / pretrained.CONFIG, said)
    write_json(folder / "generation_config.json", {"bos_token_id": eot, "eos_token_id": eot})
    for name, content in hf_files(loaded.tokenizer, max_length=config.n_positions).items():
        files.write_new(folder / name, [content])
    tokenizers.save(loaded.tokenizer, folder / HF_TOKENIZER)


WRITERS = {"weights": to_weights, "safetensors": to_safetensors, "hf": to_hf}


def usage(to: str, name: str, place: Path) -> str:
    """What can be done with the outcome."""
    if to == "hf":
        return f"transformers.AutoModelForCausalLM.from_pretrained({str(place)!r})"
    return f"stepladder sample {name if name.startswith('char-') else 'gpt2'} --ckpt {shlex.quote(str(place))}"


def write_tensors(file: Path, tensors: "dict[str, Tensor]") -> None:
    """A safetensors file, flushed to the disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode  # as the umask has it: the library would make the file private
    try:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"}
        )
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be written: {error}; free space, or choose another --out") from error
    file.chmod(mode)
    with open(file, "rb") as written:
        os.fsync(written.fileno())


def write_json(file: Path, content: dict) -> None:
    from data import files

    files.write_new(file, [(json.dumps(content, indent=1) + "\n").encode()])
