"""Small checkpoints for tests, told apart by a seed, and ways to compare and to forge them."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from train import checkpoint
from train.checkpoint import Checkpoint

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def tensors(seed: int) -> dict[str, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, generator=random)
    return {
        "model": {"wte.weight": weight, "ln.bias": torch.randn(7, generator=random).bfloat16()},
        "optimizer": {"0.exp_avg": weight * 0.1, "0.step": torch.tensor(float(seed))},
    }


def state(seed: int) -> dict:
    return {"seed": seed, "loss": seed / 7, "best_loss": None, "cursor": {"epoch": 0, "position": [seed, -1]}}


def save(folder: Path, step: int, seed: int | None = None) -> Path:
    """Writes the checkpoint of a seed, by default the step's number."""
    seed = step if seed is None else seed
    return checkpoint.save(folder, step=step, tensors=tensors(seed), state=state(seed))


def bits(named: dict[str, Tensor]) -> dict[str, tuple]:
    return {
        name: (t.dtype, t.shape, t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, t in named.items()
    }


def is_of(found: Checkpoint, step: int, seed: int) -> bool:
    """Whether a checkpoint is, bit by bit, the one of that seed."""
    expected = tensors(seed)
    return (
        found.step == step
        and found.state == state(seed)
        and found.tensors.keys() == expected.keys()
        and all(bits(found.tensors[group]) == bits(expected[group]) for group in expected)
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def forge_manifest(path: Path) -> None:
    """Makes a manifest fit its folder again, as someone would who means to deceive."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(path, manifest)


def write_manifest(path: Path, manifest: dict) -> None:
    """Writes a manifest with the SHA-256 of its own that it must have."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256((json.dumps(content) + "\n").encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**content, "sha256": digest}) + "\n")
