"""Bias + GELU: output and both gradients against float64.

Shapes: GPT-2's 3072; channels far from a block; one row, one channel; more rows than programs, so that each takes
several turns.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import bias_gelu as module
from kernels.bias_gelu import CONFIGURATIONS, bias_gelu, reference
from kernels.launching import Configuration
from model import GPT2, GPT2Config
from tests.kernels.oracle import DEVICE, DTYPES, check, differentiate, draw, twin

SHAPES = [(2, 3072), (67, 513), (1, 1025), (9, 39), (5, 1), (1, 1)]


def inputs(rows: int, channels: int, dtype=torch.float32, bias_dtype=None, *, scale=2.0, seed: int = 0) -> dict:
    bias = draw(channels, dtype=bias_dtype or dtype, seed=seed + 1)
    return {"x": draw(rows, channels, dtype=dtype, scale=scale, seed=seed), "bias": bias}


def verify(function: Callable, given: dict, factor: float = 2.0) -> None:
    """In fp32 with twice the bound: exponential and tanh err in the last places, each in its own."""
    check(function, reference, given, factor=4.0 if given["x"].dtype == torch.float32 else factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(shape: tuple[int, int], dtype: torch.dtype) -> None:
    verify(bias_gelu, inputs(*shape, dtype))


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40),
    channels=st.integers(8, 700),
    scale=st.sampled_from([1e-3, 1.0, 10.0, 1e4]),
    dtype=st.sampled_from(DTYPES),
    bias_dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_drawn_shapes_and_sizes(rows, channels, scale, dtype, bias_dtype, seed) -> None:
    """Twice the bound in 16 bits too: of a few numbers, how far eager's are off is luck."""
    verify(bias_gelu, inputs(rows, channels, dtype, bias_dtype, scale=scale, seed=seed), factor=4.0)


def test_small_outputs_are_right_relative_to_themselves() -> None:
    """Far to the left GELU is tiny, and a tanh near -1 would have cancelled its digits."""
    x = torch.linspace(-6.0, -2.0, 100, device=DEVICE)[None]
    zero = torch.zeros(100, device=DEVICE)
    torch.testing.assert_close(bias_gelu(x, zero).double(), reference(x.double(), zero), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("c", CONFIGURATIONS, ids=lambda c: str(c.keywords))
def test_every_configuration_computes_the_same(c: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    for tuner in (module.TUNER, module.GRADIENT_TUNER):
        monkeypatch.setattr(tuner, "pick", lambda *_: c)
    verify(bias_gelu, inputs(50, 600, torch.bfloat16))


def test_shapes_and_strides_of_any_kind() -> None:
    verify(bias_gelu, {"x": draw(40, 6).t(), "bias": draw(80)[::2]})
    verify(bias_gelu, {"x": draw(3, 2, 40).transpose(0, 1), "bias": draw(40)})
    verify(bias_gelu, {"x": draw(40), "bias": draw(40)})
    given = {name: t.requires_grad_() for name, t in inputs(5, 40).items()}
    ours, theirs = (torch.autograd.grad(f(**given).sum(), list(given.values())) for f in (bias_gelu, reference))
    torch.testing.assert_close(ours, theirs)  # the gradient of a sum has no strides


def test_twice_is_the_same_bit_by_bit() -> None:
    first, second = (differentiate(bias_gelu, inputs(67, 513, torch.bfloat16)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_rows_no_gradient() -> None:
    given = {name: t.requires_grad_() for name, t in inputs(0, 40).items()}
    bias_gelu(**given).sum().backward()
    assert given["x"].grad.shape == (0, 40) and not given["bias"].grad.any()


BUGS = {
    "bias forgotten": ("gelu(x + bias[None, :]).to", "gelu(x).to"),
    "bias forgotten in the gradient": ("gelu_slope(x + bias[None, :])", "gelu_slope(x)"),
    "the cubic term": ("* x * (1.0 + 0.044715 * x * x))", "* x)"),
    "the cubic term's slope": ("(1.0 + 3.0 * 0.044715", "(1.0 + 0.044715"),
    "only a program's last rows": ("dbias += dx", "dbias = dx"),
    "only the first program's share": ("shares.sum(0)", "shares[0].clone()"),
    "rows past N counted": ("dbias += dx", "dbias += tl.where(inside, dx, 1.0)"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    planted = twin(module, *BUGS[bug], tmp_path)
    given = inputs(67, 100, torch.bfloat16, torch.float32)
    verify(bias_gelu, given)
    with pytest.raises(AssertionError, match="is off by"):
        verify(planted.bias_gelu, given)


def test_they_are_well_behaved_ops() -> None:
    x, bias = inputs(5, 40, torch.bfloat16, torch.float32).values()
    torch.library.opcheck(bias_gelu, (x.requires_grad_(), bias.requires_grad_()))
    torch.library.opcheck(module._gradients, (x.detach(), x.detach(), bias.detach()))


def test_it_can_be_compiled() -> None:
    given = {name: t.requires_grad_() for name, t in inputs(6, 40).items()}

    def loss(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu(x * 2.0, bias).square().mean()

    compiled = torch.compile(loss, fullgraph=True)
    ours, theirs = (torch.autograd.grad(f(**given), list(given.values())) for f in (compiled, loss))
    torch.testing.assert_close(ours, theirs)


def test_the_model_can_choose_it() -> None:
    idx = torch.arange(16, device=DEVICE).view(2, 8)
    losses, gradients = [], []
    for mlp in ("written_out", "bias_gelu"):
        torch.manual_seed(0)
        config = GPT2Config(n_layer=2, n_head=2, n_embd=24, n_positions=8, vocab_size=31, mlp=mlp)
        model = GPT2(config).to(DEVICE)
        losses.append(model(idx, idx))
        gradients.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, "x is torch.float64; it must be float16, bfloat16 or float32"),
        ({"bias": torch.zeros(3)}, r"x is \(2, 4\), bias \(3,\); they must be"),
        ({"bias": torch.zeros(1, 4)}, r"bias \(1, 4\)"),
    ],
)
def test_wrong_inputs_are_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bias_gelu(**{"x": torch.zeros(2, 4), "bias": torch.zeros(4)} | change)


def test_without_the_interpreter_a_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="cannot run on cpu: needs an NVIDIA GPU"):
        bias_gelu(torch.zeros(2, 4), torch.zeros(4))
