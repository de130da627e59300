"""`stepladder convert` as a user meets it: the same model comes out, and nothing is ever lost or half written."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data import files, tokenizers
from model.generate import generate
from model.plain import is_plain_folder, load_plain
from model.pretrained import is_pretrained_folder, load_pretrained
from model.weights import WeightsError
from stepladder import convert as command
from stepladder.cli import main
from stepladder.disk import num_bytes, spoken
from stepladder.loading import load_model
from tests.train import tiny
from tests.train.checkpoints import contents
from train import checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short runs: characters, our own byte-pair encoding with a padded vocabulary and dropout, and a bigram."""
    folder = tmp_path_factory.mktemp("made")
    shorter = {
        "train.steps": 6,
        "train.warmup_steps": 1,
        "validation.every": 3,
        "samples.every": 0,
        "checkpoints.every": 3,
    }
    tiny.run(folder, "chars", shorter)
    bpe = {"data.tokenizer": "bpe-301", "train.rungs": ["padded_vocab"], "model.dropout": 0.1}
    tiny.run(folder, "bpe", {**shorter, **bpe})
    tiny.run(folder, "gram", {**shorter, "model.name": "char-bigram"})
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    for name in ("chars", "bpe", "gram"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def converted(capsys: pytest.CaptureFixture, run_dir: Path, to: str) -> Path:
    code, _, err = run(capsys, run_dir, "--to", to)
    assert code == 0, err
    return run_dir.with_name(f"{run_dir.name}-{to}")


def original(run_dir: Path) -> torch.nn.Module:
    return load_model("char-bigram" if run_dir.name == "gram" else "gpt2", run_dir).model


def prompt(run_dir: Path) -> torch.Tensor:
    (ids,) = tokenizers.load(run_dir / "tokenizer.json").encode([tiny.TEXT[:40]])
    return torch.tensor([ids[:8]])


def same_bits(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs.pop(name)) for name, tensor in a.state_dict().items()) and not theirs


@pytest.mark.parametrize("name", ["chars", "bpe"])
def test_transformers_gives_the_same_logits_ids_and_words(capsys, runs: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    place = converted(capsys, runs / name, "hf")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert theirs.dtype == torch.float32 and theirs.config.attn_pdrop == (0.1 if name == "bpe" else 0.0)
    ours, idx = original(runs / name), prompt(runs / name)
    with torch.no_grad():
        torch.testing.assert_close(theirs(idx).logits, ours(idx), atol=1e-4, rtol=1e-4)
    room = ours.config.n_positions - idx.shape[1]
    drawn = torch.cat(list(generate(ours, idx, num_tokens=room, temperature=0.0)))
    said = theirs.generate(idx, max_new_tokens=room, do_sample=False, attention_mask=torch.ones_like(idx), pad_token_id=0)
    assert said[0, idx.shape[1] :].tolist() == drawn.tolist()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    assert tokenizer(tiny.TEXT).input_ids == tokenizers.load(runs / name / "tokenizer.json").encode([tiny.TEXT])[0]
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == theirs.generation_config.eos_token_id
    assert (tokenizer.eos_token_id is None) == (name == "chars"), "a newline ends no text where it is also a character"


@pytest.mark.parametrize("name", ["chars", "bpe"])
def test_hf_comes_back_bit_by_bit(capsys, runs: Path, name: str) -> None:
    place = converted(capsys, runs / name, "hf")
    assert is_pretrained_folder(place) and not is_plain_folder(place)
    assert same_bits(load_pretrained(place), original(runs / name))
    assert same_bits(load_model("gpt2", place).model, original(runs / name))
    assert (place / "stepladder_tokenizer.json").read_bytes() == (runs / name / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["chars", "bpe", "gram"])
def test_weights_are_a_smaller_checkpoint(capsys, runs: Path, name: str) -> None:
    before = contents(runs)
    place = converted(capsys, runs / name, "weights")
    assert {file: content for file, content in contents(runs).items() if not file.startswith(f"{name}-")} == before
    best = checkpoint.best(runs / name / "checkpoints")
    kept = checkpoint.load(place / "checkpoints" / "best")
    assert (
        kept.tensors.keys() == {"model"} and kept.state == checkpoint.load(best).state and kept.path.name == best.name
    )
    assert num_bytes(place) < 0.5 * num_bytes(best)
    kind = "char-bigram" if name == "gram" else "gpt2"
    assert same_bits(load_model(kind, place).model, original(runs / name))
    assert load_model(kind, place).tokenizer.sha256 == load_model(kind, runs / name).tokenizer.sha256


@pytest.mark.parametrize("name", ["chars", "bpe", "gram"])
def test_safetensors_is_one_plain_file_with_its_config(capsys, runs: Path, name: str) -> None:
    place = converted(capsys, runs / name, "safetensors")
    assert sorted(file.name for file in place.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    ours = original(runs / name)
    tensors = load_file(place / "model.safetensors")
    assert tensors.keys() == ours.state_dict().keys()
    assert is_plain_folder(place) and not is_pretrained_folder(place)
    assert same_bits(load_plain(place), ours)
    assert same_bits(load_model("char-bigram" if name == "gram" else "gpt2", place).model, ours)


def test_whoever_may_read_the_run_may_read_what_came_of_it(capsys, runs: Path) -> None:
    place = converted(capsys, runs / "chars", "hf")
    assert {file.stat().st_mode for file in place.iterdir()} == {
        (runs / "chars" / "checkpoints" / "best").stat().st_mode
    }


def test_sizes_and_the_next_step_are_printed(capsys, runs: Path) -> None:
    code, out, err = run(capsys, runs / "bpe", "--to", "weights")
    best = checkpoint.best(runs / "bpe" / "checkpoints")
    first, second, third = out.splitlines()
    assert (code, err) == (0, "")
    assert first == f"from {best}: {spoken(num_bytes(best))}, step {int(best.name[5:])}"
    assert second.startswith(f"to   {runs / 'bpe-weights'}: {spoken(num_bytes(runs / 'bpe-weights'))}, 3")
    assert third == f"use it with: stepladder sample gpt2 --ckpt {runs / 'bpe-weights'}"


@pytest.mark.parametrize(
    "part", ["", "checkpoints", "checkpoints/best", "checkpoints/step-00000003", "../chars-weights"]
)
def test_a_checkpoint_can_be_named_in_every_way(capsys, runs: Path, part: str) -> None:
    converted(capsys, runs / "chars", "weights")
    code, out, err = run(capsys, runs / "chars" / part, "--to", "safetensors", "--out", runs / "out" / "deep")
    assert code == 0, err
    assert load_plain(runs / "out" / "deep").config.vocab_size > 10
    if part.endswith("3"):
        assert json.loads((runs / "out" / "deep" / "config.json").read_text())["step"] == 3


def test_without_a_place_it_goes_beside_the_run(capsys, runs: Path, monkeypatch) -> None:
    monkeypatch.chdir(runs / "chars")
    code, _, err = run(capsys, ".", "--to", "safetensors")
    assert (code, err) == (0, "") and is_plain_folder(runs / "chars-safetensors")
    monkeypatch.chdir(runs)
    code, out, _ = run(capsys, "chars", "--to", "hf")
    assert code == 0 and "to   chars-hf: " in out


def test_what_is_there_is_never_touched(capsys, runs: Path) -> None:
    full, file, link, empty = runs / "full", runs / "file", runs / "link", runs / "empty"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    file.write_text("more")
    empty.mkdir()
    link.symlink_to(empty)
    before = contents(runs)
    for place in (full, file, link):
        code, out, err = run(capsys, runs / "chars", "--to", "hf", "--out", place)
        assert (code, out) == (2, "")
        assert err == f"error: {place} is there already, and is not an empty folder; choose another --out\n"
    assert contents(runs) == before and link.is_symlink()
    code, _, _ = run(capsys, runs / "chars", "--to", "hf", "--out", empty)
    assert code == 0 and is_pretrained_folder(empty)


def test_the_checkpoint_itself_is_no_place(capsys, runs: Path) -> None:
    before = contents(runs)
    step = runs / "chars" / "checkpoints" / "step-00000003"
    code, _, err = run(capsys, step, "--to", "hf", "--out", step / "hf")
    assert code == 2 and "lies in the checkpoint itself, which stays as it is; choose another --out" in err
    assert contents(runs) == before


@pytest.mark.parametrize("to", ["weights", "safetensors", "hf"])
def test_a_full_disk_leaves_nothing_behind(capsys, runs: Path, monkeypatch, to: str) -> None:
    before, real = contents(runs), files.write_new

    def full(path: Path, parts):
        if path.name in ("manifest.json", "config.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, parts)

    monkeypatch.setattr(files, "write_new", full)
    code, out, err = run(capsys, runs / "chars", "--to", to)
    assert (code, out) == (2, "") and "no space left" in err and err.count("\n") == 1
    assert contents(runs) == before and not list(runs.glob(".*"))


def test_a_failure_in_the_middle_leaves_nothing_behind(capsys, runs: Path, monkeypatch) -> None:
    def stopped(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "write_json", stopped)
    before = contents(runs)
    code, _, _ = run(capsys, runs / "chars", "--to", "hf")
    assert code == 130 and contents(runs) == before and not list(runs.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chars"], "Missing option '--to'"),
        (["chars", "--to", "hff"], "unknown format 'hff': did you mean 'hf'?"),
        (["charz", "--to", "hf"], "no checkpoint '"),
        (["page.txt", "--to", "hf"], "page.txt"),
        (
            ["gram", "--to", "hf"],
            "holds a char-bigram, which transformers has no model for; use --to weights or --to safetensors",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, runs: Path, arguments: list[str], words: str) -> None:
    (runs / "page.txt").write_text("a page")
    before = contents(runs)
    code, out, err = run(capsys, runs / arguments[0], *arguments[1:])
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert contents(runs) == before


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json", "../../tokenizer.json"])
def test_a_damaged_checkpoint_is_named(capsys, runs: Path, file: str) -> None:
    step = runs / "chars" / "checkpoints" / "step-00000003"
    damaged = bytearray((step / file).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (step / file).write_bytes(damaged)
    code, out, err = run(capsys, step, "--to", "hf")
    assert (code, out) == (2, "") and Path(file).name in err and err.count("\n") == 1
    assert not (runs / "chars-hf").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "stepladder model 2"}, "config.json: is not of the format 'stepladder model 1'"),
        ({"kind": "llama"}, "config.json: is of kind 'llama'; choose one of gpt2, bigram"),
        ({"kind": []}, "config.json: unhashable"),
        ({"kind": "bigram"}, "config.json: .*unexpected keyword argument"),
        ({"step": "many"}, "config.json: step is 'many'; convert the checkpoint again"),
        ({"tokenizer_sha256": None}, "config.json: tokenizer_sha256 is None"),
        ({"weights_sha256": "0" * 64}, "model.safetensors: is damaged, or not the file that config.json describes"),
        ({"n_layer": 3}, "model.safetensors: h.2.ln_1.weight is missing"),
        ({"n_layer": 10**9}, "model.safetensors: n_layer is 1000000000, more than"),
        ({"n_embd": "64"}, "config.json: n_embd is '64'; it must be a number"),
        ({"n_embd": 63}, "config.json: n_embd is 63, which n_head=2 does not divide"),
    ],
)
def test_a_plain_folder_that_is_wrong_is_one_line(capsys, runs: Path, change: dict, words: str) -> None:
    place = converted(capsys, runs / "chars", "safetensors")
    said = json.loads((place / "config.json").read_text())
    for key, value in change.items():
        (said if key in said else said["config"])[key] = value
    (place / "config.json").write_text(json.dumps(said))
    with pytest.raises(WeightsError, match=words) as caught:
        load_plain(place)
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)


def test_a_flipped_bit_in_a_plain_file_is_noticed(capsys, runs: Path) -> None:
    place = converted(capsys, runs / "chars", "safetensors")
    content = bytearray((place / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (place / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="its SHA-256 is another"):
        load_plain(place)
