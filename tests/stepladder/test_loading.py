"""One function finds a model wherever it lies, and says in one line why there is none."""

import shutil
from pathlib import Path

import pytest
import torch

from data import tokenizers
from data.characters import ByteTokenizer, train_characters
from hardware import detect
from optim_ladder import Settings, Workload, build
from stepladder.cli import main
from stepladder.loading import load_model, open_checkpoint
from tests.stepladder.trained import BPE
from train import checkpoint
from train.state import unpack

IDX = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/best", "checkpoints/step-00000010"])
def test_a_run_means_its_best_checkpoint(trained_once: Path, where: str) -> None:
    found = load_model("gpt2", trained_once / "bpe" / where)
    assert (found.name, found.step, found.checkpoint_path.name) == ("pico", 10, "step-00000010")
    assert found.tokenizer.name == BPE and found.state["recipe"]["train"]["steps"] == 10
    assert not found.model.training


def test_best_goes_before_newest_and_newest_before_none(trained: Path) -> None:
    folder = trained / "bytes" / "checkpoints"
    checkpoint.mark_best(folder, 5)
    assert load_model("gpt2", trained / "bytes").step == 5
    (folder / "best").unlink()
    assert load_model("gpt2", trained / "bytes").step == 10
    assert load_model("gpt2", folder / "step-00000005").step == 5


def test_the_model_computes_what_was_trained(trained_once: Path) -> None:
    """The training step that goes on from the checkpoint and the plain model give the same logits."""
    found = load_model("gpt2", trained_once / "bpe")
    workload = Workload(model="pico", vocab_size=found.tokenizer.vocab_size, seq_len=16)
    with build(Settings(workload=workload, rungs=("flash", "padded_vocab")), detect("cpu")) as step:
        unpack(step, open_checkpoint(trained_once / "bpe").tensors)
        with step.evaluating():
            expected = step.model(IDX)
            assert torch.allclose(found.model(IDX), expected, atol=1e-5)
            assert float(expected.std()) > 1e-3
    assert found.model.config.attention == "written_out" and found.model.config.padded_vocab_size is None


def test_a_bigram_is_one(trained_once: Path) -> None:
    found = load_model("char-bigram", trained_once / "bigram")
    assert found.model(IDX).shape == (2, 12, 256) and found.name == "char-bigram"


@pytest.mark.parametrize("to", ["weights", "safetensors", "hf"])
def test_what_was_converted_is_the_same_model(trained_once: Path, tmp_path: Path, to: str) -> None:
    assert main(["convert", str(trained_once / "bpe"), "--to", to, "--out", str(tmp_path / "out")]) == 0
    original, found = load_model("gpt2", trained_once / "bpe"), load_model("gpt2", tmp_path / "out")
    assert torch.equal(found.model(IDX), original.model(IDX)) and found.tokenizer.sha256 == original.tokenizer.sha256
    assert found.step == (None if to == "hf" else 10)
    if to == "hf":
        assert torch.equal(load_model("gpt2-pretrained", tmp_path / "out").model(IDX), original.model(IDX))


@pytest.mark.parametrize(("to", "kind"), [("hf", "gpt2"), ("hf", "gpt2-pretrained"), ("safetensors", "gpt2")])
def test_a_damaged_config_of_a_converted_folder_is_named(trained_once: Path, tmp_path: Path, to: str, kind: str) -> None:
    assert main(["convert", str(trained_once / "bpe"), "--to", to, "--out", str(tmp_path / "out")]) == 0
    config = tmp_path / "out" / "config.json"
    config.write_bytes(config.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f"{config}: is no JSON, or only part of it"):
        load_model(kind, tmp_path / "out")


def test_a_folder_for_transformers_is_named_by_its_layout(trained_once: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    assert main(["convert", str(trained_once / "bpe"), "--to", "hf", "--out", str(place)]) == 0
    with pytest.raises(ValueError, match=f"out has Hugging Face's layout.*; use: gpt2-pretrained --ckpt {place}"):
        load_model("char-transformer", place)


@pytest.mark.parametrize(
    ("kind", "where", "message"),
    [
        ("gpt3", "bytes", "unknown model 'gpt3': did you mean 'gpt2'? choose from gpt2, gpt2-pretrained, char-bigram, char-transformer"),
        ("gpt2", None, "gpt2 needs its weights: add --ckpt runs/NAME, or the folder of one of its checkpoints"),
        ("gpt2", "absent", "no checkpoint '{0}/absent': there is no such folder; give a run, like runs/NAME, or one of its checkpoints"),
        ("gpt2", "bigram", "{0}/bigram/checkpoints/step-00000010 holds a char-bigram, no gpt2; use: char-bigram --ckpt {0}/bigram/checkpoints/step-00000010"),
        ("char-transformer", "bytes", "{0}/bytes/checkpoints/step-00000010 holds a pico, no char-transformer; use: gpt2 --ckpt {0}/bytes/checkpoints/step-00000010"),
        ("gpt2", "corpora", "{0}/corpora is neither a run nor a checkpoint: it has no checkpoints/ and no manifest.json"),
        ("gpt2-pretrained", "bytes", "{0}/bytes has not Hugging Face's layout; for what was trained here use: gpt2 --ckpt {0}/bytes"),
    ],
)  # fmt: skip
def test_a_wrong_place_is_one_line(trained_once: Path, kind: str, where: str | None, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_model(kind, None if where is None else trained_once / where)
    assert str(caught.value) == message.format(trained_once)


def test_a_run_without_a_checkpoint_yet(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has no checkpoint yet; train on with: stepladder train --resume"):
        load_model("gpt2", tmp_path)


def test_damage_is_named(trained: Path) -> None:
    file = trained / "bytes" / "checkpoints" / "step-00000010" / "model.safetensors"
    payload = bytearray(file.read_bytes())
    payload[-9] ^= 1
    file.write_bytes(payload)
    with pytest.raises(ValueError, match=f"{file}: is damaged: its SHA-256 is not the one in manifest.json; use another checkpoint"):
        load_model("gpt2", trained / "bytes")
    file.write_bytes(payload[:-1])
    with pytest.raises(ValueError, match=f"{file}: is damaged: shorter than"):
        load_model("gpt2", trained / "bytes")


def test_where_all_are_damaged_the_newest_is_named(trained: Path) -> None:
    folder = trained / "bytes" / "checkpoints"
    (folder / "best").unlink()
    for path in folder.glob("step-*"):
        (path / "state.json").unlink()
    with pytest.raises(ValueError, match="skipping a checkpoint|step-00000010/state.json"):
        load_model("gpt2", trained / "bytes")


def test_another_tokenizer_is_refused_and_a_lost_one_asked_for(trained: Path) -> None:
    place = trained / "bpe" / "tokenizer.json"
    shutil.copy(trained / "bytes" / "tokenizer.json", place)
    with pytest.raises(ValueError, match=f"{place} is not the tokenizer that .*step-00000010 was trained with .*; put its own back"):
        load_model("gpt2", trained / "bpe")
    place.write_bytes(place.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{place}: "):
        load_model("gpt2", trained / "bpe")
    place.unlink()
    with pytest.raises(ValueError, match=f"has lost its tokenizer: put the run's tokenizer.json at {place}"):
        load_model("gpt2", trained / "bpe")


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"name": "giant", "config": {}}, "holds a model 'giant', which is unknown here; use the version that wrote it"),
        ({"name": "pico", "config": {"n_layer": 2, "colour": 3}}, "colour"),
        ({"name": "pico", "config": {"n_layer": 3, "n_head": 2, "n_embd": 64, "n_positions": 16, "vocab_size": 256}}, "is missing; this shape needs"),
        ({"name": "pico", "config": None}, "is unknown here"),
    ],
)
def test_a_shape_that_is_not_its_tensors(trained: Path, model: dict, problem: str) -> None:
    folder = trained / "bytes" / "checkpoints"
    found = open_checkpoint(folder)
    checkpoint.save(folder, step=11, tensors=found.tensors, state={**found.state, "model": model})
    with pytest.raises(ValueError, match=problem):
        load_model("gpt2", folder / "step-00000011")


def test_a_pretrained_folder_of_another_vocabulary_needs_its_tokenizer(trained: Path, tmp_path: Path) -> None:
    assert main(["convert", str(trained / "bytes"), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    place = tmp_path / "out" / "stepladder_tokenizer.json"
    place.unlink()
    with pytest.raises(ValueError, match="has 256 token ids, not GPT-2's 50257; put the tokenizer.json of its run there"):
        load_model("gpt2-pretrained", tmp_path / "out")
    shutil.copy(trained / "bpe" / "tokenizer.json", place)
    with pytest.raises(ValueError, match="has 300 token ids, more than the 256 of the model beside it"):
        load_model("gpt2", tmp_path / "out")
    tokenizers.save(train_characters(chr(i) for i in range(256)), place)  # as many ids, and other ones
    with pytest.raises(ValueError, match=f"{place} is not the tokenizer that .*out was trained with .*; put its own"):
        load_model("gpt2", tmp_path / "out")
    tokenizers.save(ByteTokenizer(), place)
    assert load_model("gpt2", tmp_path / "out").tokenizer.name == "bytes"
