"""Parameter and FLOP counts against published numbers and against PyTorch's own counter."""

import pytest

from model import MODELS, GPT2Config
from model.flops import flops_per_token, num_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_parameters_are_those_of_the_released_models(name: str, parameters: int) -> None:
    assert num_parameters(MODELS[name]) == parameters


def test_the_124m_conventions_by_hand() -> None:
    # N = 123.65 M without positions; 6N = 741.9 M; attention 12 · 12 · 768 · 1024 = 113.2 M in full.
    assert num_parameters(MODELS["gpt2"], positions=False) == 123_653_376
    flops = flops_per_token(MODELS["gpt2"], 1024)
    assert flops["full"] == 6 * 123_653_376 + 113_246_208
    assert flops["causal"] == 6 * 123_653_376 + 113_246_208 / 2


# With a vocabulary of characters, biases and norms are no longer next to nothing beside the matrices.
@pytest.mark.parametrize("name", [name for name, config in MODELS.items() if config.vocab_size > 8000])
def test_counting_agrees_with_the_formula(name: str) -> None:
    config, T = MODELS[name], 256
    flops = flops_per_token(config, T)
    products = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd  # weights in matrix products
    assert flops["counted"] == 6 * products + 12 * config.n_layer * config.n_embd * T
    assert flops["counted"] == pytest.approx(flops["full"], rel=2e-3)  # the rest is biases and norms


def test_padding_is_not_useful_work() -> None:
    padded = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=100, padded_vocab_size=128)
    plain = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=100)
    assert flops_per_token(padded, 16)["full"] == flops_per_token(plain, 16)["full"]
