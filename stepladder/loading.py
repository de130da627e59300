"""A trained model from wherever it lies: a run, one of its checkpoints, a converted folder, or GPT-2's own release."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from data.download import Progress
    from data.tokenizers import Tokenizer
    from train.checkpoint import Checkpoint

PRETRAINED = "gpt2-pretrained"
KINDS = ("gpt2", PRETRAINED, "char-bigram", "char-transformer")
GPT2_VOCAB_SIZE = 50257
HF_TOKENIZER = "stepladder_tokenizer.json"  # beside Hugging Face's own files, which tell less
TOKENIZER_SHA256 = "stepladder_tokenizer_sha256"  # in their config.json


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that is ready to be used.

    Args:
        model: the plain module on its device, in evaluation mode: fp32, attention written out, vocabulary not padded.
        tokenizer: the one it was trained with.
        name: of `model.MODELS`, or where its weights came from.
        step: optimizer steps it was trained for; None where that is not known.
        checkpoint_path: the folder it came from; None for one from the hub.
        state: what its checkpoint says beside tensors: recipe, settings, dataset, progress; empty where there is none.
    """

    model: "nn.Module"
    tokenizer: "Tokenizer"
    name: str
    step: int | None
    checkpoint_path: Path | None
    state: dict[str, Any] = field(default_factory=dict)


def load_model(
    kind: str,
    ckpt: Path | None,
    device: "torch.device | str" = "cpu",
    *,
    progress: "Progress | None" = None,
) -> Loaded:
    """The model that a user means by a kind and a place.

    Args:
        kind: one of `KINDS`; "gpt2" is any size of it that was trained here.
        ckpt: a run (its best checkpoint, or else its newest), a checkpoint's folder, the file `best`, or a folder made
            by `stepladder convert`. For "gpt2-pretrained" a folder in Hugging Face's layout or a released name; None is
            "gpt2".
        device: where the model shall be.
        progress: told what is downloaded.

    Raises:
        ValueError: there is no such model, it is of another kind, or damaged, or its tokenizer is missing or another.
        OSError: released weights cannot be downloaded.
    """
    from model.plain import CONFIG, is_plain_folder
    from model.pretrained import is_pretrained_folder
    from optim_ladder import unknown

    if kind not in KINDS:
        raise unknown("model", kind, KINDS)
    if kind == PRETRAINED:
        return _pretrained(ckpt, device, progress)
    if ckpt is None:
        raise ValueError(f"{kind} needs its weights: add --ckpt runs/NAME, or the folder of one of its checkpoints")
    if is_plain_folder(ckpt):
        return _plain(kind, ckpt, device)
    if is_pretrained_folder(ckpt):
        if kind != "gpt2":
            raise ValueError(f"{ckpt} has Hugging Face's layout, whatever was trained; use: {PRETRAINED} --ckpt {ckpt}")
        return _pretrained(ckpt, device, progress)
    if (ckpt / CONFIG).is_file():  # a converted folder, or meant to be one: its reader says what is wrong
        return _plain(kind, ckpt, device)
    return _trained(kind, ckpt, device)


def open_checkpoint(ckpt: Path, *, names: Sequence[str] | None = None) -> "Checkpoint":
    """The checkpoint that a path means, verified.

    Args:
        ckpt: a run (its best, or else its newest), its folder of checkpoints, a checkpoint, or the file `best`.
        names: groups of tensors to read, e.g. ["model"]; all by default.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    from train import checkpoint

    if not (ckpt := Path(ckpt)).exists():
        raise ValueError(
            f"no checkpoint {str(ckpt)!r}: there is no such folder; give a run, like runs/NAME, or one of its checkpoints"
        )
    ckpt = Path(os.path.abspath(ckpt))  # a checkpoint is known by its folder's name, which "." does not tell
    folder = ckpt / checkpoint.CHECKPOINTS if (ckpt / checkpoint.CHECKPOINTS).is_dir() else ckpt
    if folder.name != checkpoint.CHECKPOINTS:
        if ckpt.is_dir() and not ckpt.name.startswith("step-") and not (ckpt / "manifest.json").exists():
            raise ValueError(f"{ckpt} is neither a run nor a checkpoint: it has no checkpoints/ and no manifest.json")
        return checkpoint.load(ckpt, names=names)
    if best := checkpoint.best(folder):
        return checkpoint.load(best, names=names)
    warnings: list[str] = []
    newest = checkpoint.newest(folder, warn=warnings.append, names=names)
    if newest is None:
        none_yet = f"{ckpt} has no checkpoint yet; train on with: stepladder train --resume"
        raise ValueError(warnings[0] if warnings else none_yet)
    return newest


@contextmanager
def memory_in_one_line(remedy: str) -> Iterator[None]:
    """Turns a lack of memory, which PyTorch tells at length, into a line.

    Raises:
        ValueError: there was too little; it says the remedy.
    """
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(words in str(error) for words in ("out of memory", "can't allocate memory")):
            raise
        raise ValueError(f"out of memory; {remedy}") from error


def _trained(kind: str, ckpt: Path, device: "torch.device | str") -> Loaded:
    found = open_checkpoint(ckpt, names=["model"])
    said = found.state.get("model") or {}
    name = str(said.get("name"))
    _check_kind(kind, name, found.path)
    trained_with = found.state.get("dataset", {}).get("tokenizer_sha256")
    tokenizer = _tokenizer(found.path.parent.parent / "tokenizer.json", trained_with, found.path)
    model = _module(name, said.get("config"), found.tensors["model"], found.path).to(device)
    return Loaded(
        model=model, tokenizer=tokenizer, name=name, step=found.step, checkpoint_path=found.path, state=found.state
    )


def _plain(kind: str, folder: Path, device: "torch.device | str") -> Loaded:
    """What `convert --to safetensors` made."""
    from model.plain import load_plain, read_description

    model, said = load_plain(folder), read_description(folder)
    _check_kind(kind, str(said["name"]), folder)
    tokenizer = _tokenizer(folder / "tokenizer.json", said["tokenizer_sha256"], folder)
    return Loaded(
        model=model.to(device).eval(), tokenizer=tokenizer, name=said["name"], step=said["step"], checkpoint_path=folder
    )


def _pretrained(given: Path | None, device: "torch.device | str", progress: "Progress | None") -> Loaded:
    """GPT-2's released weights, or any in the same layout."""
    from data import tokenizers
    from data.gpt2 import fetch_gpt2
    from model.plain import is_plain_folder
    from model.pretrained import CONFIG, load_pretrained
    from model.weights import read_json

    folder = given if given is not None and given.exists() else None
    if folder is not None and (is_plain_folder(folder) or not (folder / CONFIG).is_file()):
        raise ValueError(f"{folder} has not Hugging Face's layout; for what was trained here use: gpt2 --ckpt {folder}")
    name = str(given or "gpt2")
    model = load_pretrained(name, progress=progress)
    own = folder / HF_TOKENIZER if folder else None
    if own is not None and own.exists():
        tokenizer = tokenizers.load(own)
    elif model.config.vocab_size == GPT2_VOCAB_SIZE:
        fetch_gpt2()
        tokenizer = tokenizers.gpt2()
    else:
        raise ValueError(
            f"{name} has {model.config.vocab_size} token ids, not GPT-2's {GPT2_VOCAB_SIZE}; put the tokenizer.json of its "
            f"run there as {HF_TOKENIZER}"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{own} has {tokenizer.vocab_size} token ids, more than the {model.config.vocab_size} of the model beside it; "
            "put its own there"
        )
    if folder is not None and (trained_with := read_json(folder / CONFIG).get(TOKENIZER_SHA256)) is not None:
        _check_tokenizer(tokenizer, trained_with, own, folder)
    return Loaded(model=model.to(device).eval(), tokenizer=tokenizer, name=name, step=None, checkpoint_path=folder)


def _check_kind(kind: str, name: str, where: Path) -> None:
    its = name if name.startswith("char-") else "gpt2"
    if its != kind:
        raise ValueError(f"{where} holds a {name}, no {kind}; use: {its} --ckpt {where}")


def _tokenizer(place: Path, trained_with: str | None, where: Path) -> "Tokenizer":
    """The model's own tokenizer.

    Raises:
        ValueError: there is none, it is damaged, or not the one the model was trained with.
    """
    from data import tokenizers

    if not place.exists():
        raise ValueError(f"{where} has lost its tokenizer: put the run's tokenizer.json at {place}")
    tokenizer = tokenizers.load(place)
    _check_tokenizer(tokenizer, trained_with, place, where)
    return tokenizer


def _check_tokenizer(tokenizer: "Tokenizer", trained_with: Any, place: Path, where: Path) -> None:
    if tokenizer.sha256 != trained_with:
        raise ValueError(
            f"{place} is not the tokenizer that {where} was trained with ({tokenizer.sha256[:12]} against "
            f"{str(trained_with)[:12]}); put its own back"
        )


def _module(name: str, shape: Any, tensors: "dict[str, Tensor]", where: Path) -> "nn.Module":
    """The plain module with these values; what rungs chose of its shape is left out.

    Raises:
        ValueError: there is no model of that shape here, or the tensors are not its own.
    """
    from model import MODELS, weights

    with weights.reading(where):
        if name not in MODELS or not isinstance(shape, dict):
            raise ValueError(f"holds a model {name!r}, which is unknown here; use the version that wrote it")
        config = weights.plain(type(MODELS[name])(**shape))
        weights.check(tensors, weights.shapes(config, len(tensors)))
        return weights.filled(config, tensors)
