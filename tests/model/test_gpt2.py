"""GPT-2 against Hugging Face's, against its own definition, and against what users may get wrong."""

from dataclasses import fields, replace

import pytest
import torch

from model import GPT2, MODELS, GPT2Config
from model.gpt2 import CHOSEN_BY_RUNGS
from model.hf import from_hf, to_hf

transformers = pytest.importorskip("transformers")

# Odd on purpose: head sizes that are no power of two, one layer, one head, one position, a vocabulary of primes.
CONFIGS = [
    GPT2Config(n_layer=1, n_head=1, n_embd=7, n_positions=1, vocab_size=11),
    GPT2Config(n_layer=2, n_head=3, n_embd=39, n_positions=17, vocab_size=101),
    GPT2Config(n_layer=3, n_head=5, n_embd=35, n_positions=33, vocab_size=257),
    GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=64, vocab_size=503, padded_vocab_size=512),
]
TINY = CONFIGS[1]


def random_hf(config: GPT2Config, seed: int = 0):
    """A Hugging Face model of this shape in which every number is random: biases and norms start at 0 and 1 otherwise."""
    torch.manual_seed(seed)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_positions=config.n_positions,
            vocab_size=config.vocab_size,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.3)
    return theirs


def tokens(config: GPT2Config, batch: int = 2, length: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (batch, length or config.n_positions), generator=generator)


@pytest.mark.parametrize("attention", ["written_out", "sdpa"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
def test_logits_equal_hugging_face(config: GPT2Config, attention: str) -> None:
    theirs = random_hf(config)
    config = replace(config, attention=attention)
    ours = GPT2(config).eval()
    ours.load_state_dict(from_hf(theirs.state_dict(), config))
    for length in {1, config.n_positions // 2 + 1, config.n_positions}:
        idx = tokens(config, length=length)
        with torch.no_grad():
            expected, found = theirs(idx).logits, ours(idx)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_loss_and_gradients_equal_hugging_face() -> None:
    theirs, ours, idx = random_hf(TINY), GPT2(TINY), tokens(TINY)
    ours.load_state_dict(from_hf(theirs.state_dict(), TINY))
    theirs.loss_type = "ForCausalLM"
    loss = ours(idx[:, :-1], idx[:, 1:])
    expected = theirs(idx, labels=idx).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, gradient in from_hf(gradients, TINY).items():
        torch.testing.assert_close(ours.get_parameter(name).grad, gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
def test_weights_survive_the_way_to_hugging_face_and_back(config: GPT2Config) -> None:
    theirs = random_hf(config)
    ours = from_hf(theirs.state_dict(), config)
    back = to_hf(ours, config)
    theirs.load_state_dict(back, strict=True)
    for name, tensor in from_hf(back, config).items():
        assert torch.equal(tensor, ours[name]), name


def test_weights_of_another_shape_are_refused() -> None:
    state = random_hf(TINY).state_dict()
    with pytest.raises(ValueError, match=r"wte.weight is \(101, 39\); this shape needs \(102, 39\)"):
        from_hf(state, replace(TINY, vocab_size=102))
    with pytest.raises(ValueError, match="wte.weight is missing"):
        from_hf({}, TINY)


def test_initialisation_is_gpt2s() -> None:
    torch.manual_seed(0)
    model = GPT2(replace(MODELS["nano"], vocab_size=8192))
    residual = 0.02 / (2 * 4) ** 0.5
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".ln_" in f".{name}":
            assert (parameter == 1).all(), name
        else:
            expected = residual if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
            assert abs(parameter.mean().item()) < 0.02 * expected + 3 * expected / parameter.numel() ** 0.5, name
    idx = tokens(model.config, length=64)
    assert model(idx, idx.roll(-1, 1)).item() == pytest.approx(torch.tensor(8192.0).log().item(), abs=0.2)


def test_the_head_is_the_embedding_table() -> None:
    model = GPT2(TINY)
    assert sum(p.numel() for p in model.parameters() if p.shape[0] == TINY.vocab_size) == TINY.vocab_size * TINY.n_embd
    idx = torch.zeros(1, 4, dtype=torch.int64)
    model(idx, idx + 1).backward()
    unused = model.wte.weight.grad[2:]  # ids that are neither input nor target: only the head reaches these rows
    assert (unused != 0).any(dim=1).all()


@pytest.mark.parametrize("attention", ["written_out", "sdpa"])
def test_no_position_sees_the_future(attention: str) -> None:
    model = GPT2(replace(TINY, attention=attention)).eval()
    idx = tokens(TINY, batch=1)
    changed = idx.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % TINY.vocab_size
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_padding_changes_neither_weights_nor_loss_nor_gradients() -> None:
    plain_config, padded_config = TINY, replace(TINY, padded_vocab_size=128)
    torch.manual_seed(3)
    plain = GPT2(plain_config)
    torch.manual_seed(3)
    padded = GPT2(padded_config)
    padded.wte.weight.data[101:] = 50.0  # huge: the loss would show it if a padding column reached the softmax
    idx = tokens(TINY)
    losses = [m(idx, idx.roll(-1, 1)) for m in (plain, padded)]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=0)
    for loss in losses:
        loss.backward()
    assert not padded.wte.weight.grad[101:].any()
    for (name, p), q in zip(plain.named_parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(q.grad[: len(p)], p.grad, atol=1e-6, rtol=1e-5, msg=name)
    assert plain.num_parameters() == padded.num_parameters()
    assert padded(idx).shape[-1] == TINY.vocab_size


def test_what_rungs_choose_has_a_plain_default() -> None:
    """And is all that can be chosen by name: a shape is made of numbers."""
    chosen = {f.name: f.default for f in fields(GPT2Config) if f.name in CHOSEN_BY_RUNGS}
    assert set(chosen.values()) == {"written_out", None, False} and len(chosen) == len(CHOSEN_BY_RUNGS)
    assert all(isinstance(f.default, int | float) for f in fields(GPT2Config) if f.name not in CHOSEN_BY_RUNGS)


def test_targets_of_minus_100_do_not_count() -> None:
    model, idx = GPT2(TINY), tokens(TINY)
    targets = idx.roll(-1, 1)
    masked = targets.clone()
    masked[:, 5:] = -100
    torch.testing.assert_close(model(idx, masked), model(idx[:, :5], targets[:, :5]))


def test_dropout_acts_in_training_only() -> None:
    for attention in ("written_out", "sdpa"):
        torch.manual_seed(0)
        model, idx = GPT2(replace(TINY, dropout=0.5, attention=attention)), tokens(TINY)
        assert not torch.equal(model(idx), model(idx))
        model.eval()
        assert torch.equal(model(idx), model(idx))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "n_embd is 39, which n_head=5 does not divide"),
        ({"n_layer": 0}, "n_layer is 0; it must be at least 1"),
        ({"padded_vocab_size": 100}, "padded_vocab_size is 100, below vocab_size=101"),
        ({"attention": "flsh"}, "attention is 'flsh'; choose one of written_out, sdpa, flex, triton"),
        ({"loss": "tritn"}, "loss is 'tritn'; choose one of written_out, triton, chunked"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must lie in \[0, 1\)"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_sequence_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence length is 18, above n_positions=17"):
        GPT2(TINY)(torch.zeros(1, 18, dtype=torch.int64))
