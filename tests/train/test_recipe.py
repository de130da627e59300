"""Recipes: the ones that come with the project are whole, and whatever is wrong with one is said in a line."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from model import MODELS
from optim_ladder import LADDER
from train.recipe import Recipe, fixed_part, load
from train.schedule import learning_rate

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))
NANO = next(path for path in RECIPES if path.stem == "stdlib-nano")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_whole_and_survives_writing(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    assert recipe.model.name in MODELS
    assert recipe.train.tokens_per_step % recipe.train.seq_len == 0
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert load(tmp_path / "again.toml") == recipe


def test_the_published_numbers_of_fineweb() -> None:
    t = load(next(path for path in RECIPES if path.stem == "fineweb-edu-10b")).train
    assert (t.tokens_per_step, t.steps, t.warmup_steps) == (524_288, 19_073, 715)
    assert (t.learning_rate, t.min_learning_rate, t.weight_decay, t.clip, t.beta2) == (6e-4, 6e-5, 0.1, 1.0, 0.95)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "unknown key in recipe section .train.: 'step': did you mean 'steps'"),
        ("trian.steps=3", "unknown recipe section 'trian': did you mean 'train'"),
        ("train.steps=many", "train.steps is 'many'; it must be an int"),
        ("train.steps=0", "train.steps is 0; it must be at least 1"),
        ("train.steps=true", "train.steps is True; it must be an int"),
        ("train.learning_rate=inf", "train.learning_rate is inf; it must be a float"),
        ("train.learning_rate=-1", "train.learning_rate is -1.0; it must be positive"),
        ("train.min_learning_rate=1", "min_learning_rate is 1.0, above learning_rate=0.001"),
        ("train.beta2=1", "train.beta2 is 1.0; it must lie in"),
        ("train.micro_batches=[4,0]", "every process needs at least 1 sequence"),
        ("model.dropout=1", "model.dropout is 1.0; it must lie in"),
        ("train", "'train' is no setting; write section.key=value"),
        ("checkpoints.keep=0", "checkpoints.keep is 0; it must be at least 1"),
    ],
)
def test_a_wrong_key_or_value_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(NANO, [override])
    assert "\n" not in str(caught.value)


def test_overrides_are_typed() -> None:
    recipe = load(NANO, ["train.rungs=bf16,flash", "train.clip=2", "data.corpus=my text.txt", "watch.tensorboard=true"])
    assert recipe.train.rungs == ["bf16", "flash"] and recipe.train.clip == 2.0
    assert recipe.data.corpus == "my text.txt" and recipe.watch.tensorboard is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data\n", "is not TOML"),
        ("", r"has no section \[data\]"),
        ('data = "stdlib"', "recipe section 'data' is 'stdlib'; write .data. and its keys below it"),
        ('[data]\ntokenizer = "char"', "lacks data.corpus"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "r.toml")
    with pytest.raises(ValueError, match="no recipe"):
        load(tmp_path / "absent.toml")


VALUES = st.one_of(st.integers(-2, 100), st.floats(), st.text(max_size=8), st.booleans(), st.lists(st.integers(0, 9), max_size=3))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["data.corpus", "data.tokenizer", "model.name", "model.dropout", "train.steps", "train.clip", "train.rungs",
                 "train.micro_batches", "samples.prompt", "samples.top_k", "watch.trackio", "train.stepz", "trian.steps"]
            ),
            VALUES,
        ),
        max_size=4,
    )
)  # fmt: skip
def test_any_configuration_is_taken_or_refused_in_our_own_words(changes: list) -> None:
    """What is taken can be written and read again, whatever characters it holds."""
    sections = load(NANO).to_dict()
    for name, value in changes:
        section, key = name.split(".")
        sections.setdefault(section, {})[key] = value
    try:
        recipe = Recipe.from_dict(sections)
    except ValueError as error:
        assert "\n" not in str(error).replace(repr(changes), "")
        event("refused")
    else:
        event("taken")
        assert Recipe.from_dict(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize("prompt", ["😀", "tab\t and \x7f", 'quote " and \\', "line\nline", ""])
def test_a_prompt_of_any_characters_can_be_kept(prompt: str) -> None:
    sections = load(NANO).to_dict()
    sections["samples"]["prompt"] = prompt
    assert Recipe.from_dict(tomllib.loads(Recipe.from_dict(sections).to_toml())).samples.prompt == prompt


def test_what_may_change_when_a_run_goes_on() -> None:
    recipe = load(NANO)
    for free in ("train.steps=9", "train.micro_batch=2", "train.rungs=bf16", "validation.every=3", "watch.trackio=true"):
        assert fixed_part(load(NANO, [free])) == fixed_part(recipe)
    for fixed in ("train.seed=9", "train.seq_len=128", "data.corpus=x", "model.name=mini", "train.tokens_per_step=8192"):
        assert fixed_part(load(NANO, [fixed])) != fixed_part(recipe)


def test_the_schedule_warms_up_then_falls_along_a_cosine() -> None:
    t = load(NANO, ["train.steps=110", "train.warmup_steps=9", "train.learning_rate=1.0", "train.min_learning_rate=0.2"]).train
    rates = [learning_rate(step, t) for step in range(t.steps)]
    assert rates[0] == pytest.approx(0.1) and rates[8] == pytest.approx(0.9) and rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.2) and rates[59] == pytest.approx(0.6, abs=0.01)
    assert all(a > b for a, b in zip(rates[9:], rates[10:], strict=False))
    one = load(NANO, ["train.steps=1", "train.warmup_steps=0"]).train
    assert learning_rate(0, one) == one.learning_rate
