"""GPT-2's MLP with GELU inside the products: output and all five gradients against float64.

Shapes: N, C, F and O below, at and above a tile and far from a multiple of anything; sums of one number; more rows of
tiles than a group of them. The interpreter's products are right in fp16 and fp32.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import linear_gelu as module
from kernels.launching import Configuration
from kernels.linear_gelu import CONFIGURATIONS, mlp, reference
from model import GPT2, GPT2Config
from model.gpt2 import ADD_NORM, MLPS
from tests.kernels.oracle import DEVICE, DOT_DTYPES, check, differentiate, draw, twin

# (rows, channels in, wide channels, channels out)
SHAPES = [(5, 24, 96, 24), (70, 33, 130, 7), (64, 32, 128, 32), (1, 48, 192, 48), (3, 1, 1, 1), (1, 1, 1, 1)]
HALF = torch.float16


def inputs(rows: int, C: int, wide: int, out: int, dtype=torch.float32, bias_dtype=None, *, seed: int = 0) -> dict:
    bias_dtype = bias_dtype or dtype
    return {
        "x": draw(rows, C, dtype=dtype, seed=seed),
        "weight_1": draw(wide, C, dtype=dtype, scale=2 * C**-0.5, seed=seed + 1),
        "bias_1": draw(wide, dtype=bias_dtype, seed=seed + 2),
        "weight_2": draw(out, wide, dtype=dtype, scale=wide**-0.5, seed=seed + 3),
        "bias_2": draw(out, dtype=bias_dtype, seed=seed + 4),
    }


def verify(function: Callable, given: dict, factor: float = 2.0) -> None:
    """In fp32 with twice the bound: two orders of adding, and exponential against tanh."""
    check(function, reference, given, factor=4.0 if given["x"].dtype == torch.float32 else factor)


@pytest.fixture(autouse=True)
def empty_memory_holds_no_numbers() -> Iterator[None]:
    """A tile that is never written must not find an earlier call's numbers in its place."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    verify(mlp, inputs(*shape, dtype))


@pytest.mark.parametrize(("rows", "dtype"), [(600, HALF), (300, torch.float32)])
def test_more_rows_than_a_group_of_tiles(rows: int, dtype: torch.dtype) -> None:
    verify(mlp, inputs(rows, 8, 140, 5, dtype))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 90),
    C=st.integers(1, 70),
    wide=st.integers(8, 150),
    out=st.integers(4, 40),
    dtype=st.sampled_from(DOT_DTYPES),
    bias_dtype=st.sampled_from((torch.bfloat16, torch.float32)),
    seed=st.integers(0, 99),
)
def test_drawn_shapes(rows, C, wide, out, dtype, bias_dtype, seed) -> None:
    """Twice the bound in fp16 too: of a few numbers, how far eager's are off is luck."""
    verify(mlp, inputs(rows, C, wide, out, dtype, bias_dtype, seed=seed), factor=4.0)


@pytest.mark.parametrize("c", CONFIGURATIONS, ids=lambda c: str(c.keywords))
def test_every_configuration_computes_the_same(c: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    for tuner in (module.TUNER, module.GRADIENT_TUNER):
        monkeypatch.setattr(tuner, "pick", lambda *_: c)
    verify(mlp, inputs(130, 70, 300, 40, HALF, torch.float32))


@pytest.mark.parametrize(("N", "rows"), [(1, 128), (129, 256), (12000, 16384), (10**6, 16384)])
def test_sizes_are_tuned_by_classes(N: int, rows: int) -> None:
    assert module.trial_rows(N) == rows


def test_shapes_and_strides_of_any_kind() -> None:
    made = inputs(6, 20, 48, 20)
    made |= {"x": draw(20, 6).t(), "weight_1": draw(20, 96, scale=0.2).t()[::2], "bias_1": draw(96)[::2]}
    verify(mlp, made | {"weight_2": draw(48, 20, scale=0.2).t()})
    verify(mlp, made | {"x": draw(3, 2, 20).transpose(0, 1)})
    verify(mlp, made | {"x": draw(20)})
    made = {name: t.requires_grad_() for name, t in inputs(6, 20, 48, 20).items()}
    ours, theirs = (torch.autograd.grad(f(**made).sum(), list(made.values())) for f in (mlp, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)  # the gradient of a sum has no strides


def test_twice_is_the_same_bit_by_bit() -> None:
    first, second = (differentiate(mlp, inputs(150, 33, 130, 7, HALF)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_gradients_nothing_is_kept() -> None:
    made = inputs(5, 24, 96, 24, HALF)
    y, h, pre = module._mlp(*made.values(), keep=True)
    assert h.shape == pre.shape == (5, 96)
    assert [t.shape for t in module._mlp(*made.values(), keep=False)] == [y.shape, (0,), (0,)]
    assert torch.equal(mlp(**made), y)
    made["x"].requires_grad_()
    assert torch.equal(mlp(**made).detach(), y) and mlp(**made).requires_grad
    with torch.no_grad():
        assert torch.equal(mlp(**made), y)


def test_autocast_is_followed() -> None:
    """Weights and streams in fp32, products in 16 bits: as far from the truth as PyTorch's own way."""
    made = inputs(20, 24, 96, 24)
    found, errors = {}, {}
    for name, function in {"truth": reference, "eager": reference, "ours": mlp}.items():
        leaves = [(t.double() if name == "truth" else t.clone()).requires_grad_() for t in made.values()]
        with torch.autocast(DEVICE.type, HALF, enabled=name != "truth"):
            y = function(*leaves)
        assert name == "truth" or y.dtype == HALF
        found[name] = [y.detach(), *torch.autograd.grad(y.double().square().mean(), leaves)]
    for name in ("ours", "eager"):
        errors[name] = [float((a - b).norm() / b.norm()) for a, b in zip(found[name], found["truth"], strict=True)]
    for ours, eager, gradient in zip(errors["ours"], errors["eager"], found["ours"], strict=True):
        assert 1e-6 < ours < 2 * eager + 1e-4, gradient.shape
    assert {g.dtype for g in found["ours"][1:]} == {torch.float32}


@pytest.mark.parametrize(("said", "meant"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_fp32_products_are_as_precise_as_pytorchs(said: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: said)
    asked = []
    monkeypatch.setattr(module, "launch", lambda *a, precision, **k: asked.append(precision))
    module._mlp(*inputs(2, 3, 4, 5).values(), keep=False)
    assert asked == [meant]


def test_no_rows_no_gradients() -> None:
    made = {name: t.requires_grad_() for name, t in inputs(0, 24, 96, 8).items()}
    y = mlp(**made)
    y.sum().backward()
    assert y.shape == (0, 8) and not any(made[name].grad.any() for name in made)


ADD_BIAS = "pre += tl.load(bias_ptr + columns, mask=columns < WIDE, other=0.0).to(tl.float32)[None, :]"
BUGS = {
    "bias forgotten": (ADD_BIAS, "pass"),
    "the left half twice": ("finish_forward(right", "finish_forward(left"),
    "the halves exchanged": ("left, right = halves(dh", "right, left = halves(dh"),
    "every second column on the left": ("(ROWS, 2, COLUMNS // 2)), (0, 2, 1)", "(ROWS, COLUMNS // 2, 2)), (0, 1, 2)"),
    "a group's height where the last is lower": ("within // height", "within // GROUP"),
    "the end of the sums forgotten": ("range(0, K, DEPTH)", "range(0, K - DEPTH + 1, DEPTH)"),
    "weights read across": ("WIDE, WIDE, 1, PRECISION", "WIDE, 1, K, PRECISION"),
    "GELU's derivative forgotten": ("dpre = dh * gelu_slope(", "dpre = dh * (0.0 * "),
    "GELU's derivative at its output": ("*output[1:])", "output[1], output[1])"),
    "the first tile's share alone": ("configuration=c).sum(0)", "configuration=c)[0].clone()"),
    "GELU of bf16": ("gelu(pre).to(h_ptr", "gelu(pre.to(tl.bfloat16).to(tl.float32)).to(h_ptr"),
    "the second bias's gradient a mean": ("dy.sum(0, dtype", "dy.mean(0, dtype"),
}  # fmt: skip


# The second group of tiles is not full, and the sums end inside a tile.
TRAP = {"rows": 580, "C": 40, "wide": 200, "out": 6, "dtype": HALF}


def test_without_a_bug_the_same_inputs_pass() -> None:
    verify(mlp, inputs(**TRAP))


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    planted = twin(module, *BUGS[bug], tmp_path)
    with pytest.raises(AssertionError, match="is off by"):
        verify(planted.mlp, inputs(**TRAP))


def test_they_are_well_behaved_ops() -> None:
    made = [t.requires_grad_() for t in inputs(5, 24, 40, 24).values()]
    torch.library.opcheck(module._mlp, tuple(made), {"keep": True})
    torch.library.opcheck(module._mlp, tuple(t.detach() for t in made), {"keep": False})
    _, h, _ = module._mlp(*(t.detach() for t in made), keep=True)
    torch.library.opcheck(module._gradient, (draw(5, 24), made[3].detach(), h))


def test_it_can_be_compiled() -> None:
    made = {name: t.requires_grad_() for name, t in inputs(6, 20, 48, 20).items()}

    def loss(x, **weights) -> torch.Tensor:
        return mlp(x * 2.0, **weights).square().mean()

    compiled = torch.compile(loss, fullgraph=True)
    ours, theirs = (torch.autograd.grad(f(**made), list(made.values())) for f in (compiled, loss))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**made), loss(**made))


def test_the_model_can_choose_it() -> None:
    idx = torch.arange(16, device=DEVICE).view(2, 8)
    losses, gradients = [], []
    for choice in ("written_out", "triton"):
        torch.manual_seed(0)
        config = GPT2Config(n_layer=2, n_head=2, n_embd=24, n_positions=8, vocab_size=31, mlp=choice, add_norm=choice)
        model = GPT2(config).to(DEVICE)
        losses.append(model(idx, idx))
        gradients.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("field", "choices"), [("mlp", MLPS), ("add_norm", ADD_NORM)], ids=["mlp", "add_norm"])
def test_the_model_knows_its_choices(field: str, choices: dict[str, Callable]) -> None:
    assert {"written_out", "triton"} <= choices.keys()
    with pytest.raises(ValueError, match=f"{field} is 'tritn'; choose one of {', '.join(choices)}$"):
        GPT2Config(**{field: "tritn"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, dtype=torch.float64)}, "x is torch.float64; it must be float16, bfloat16 or float32"),
        ({"weight_2": torch.zeros(3, 8, dtype=HALF)}, "weight_2 is torch.float16, x is torch.float32; convert one"),
        ({"bias_1": torch.zeros(4)}, r"bias_1 \(4,\), weight_2 \(3, 8\), bias_2 \(3,\); they must be"),
        ({"weight_1": torch.zeros(8, 5)}, r"weight_1 \(8, 5\)"),
        ({"weight_2": torch.zeros(3, 7)}, r"weight_2 \(3, 7\)"),
        ({"bias_2": torch.zeros(4)}, r"bias_2 \(4,\)"),
    ],
)
def test_wrong_inputs_are_refused_by_name(change: dict, message: str) -> None:
    right = {name: torch.zeros(*shape) for name, shape in
             {"x": (2, 4), "weight_1": (8, 4), "bias_1": (8,), "weight_2": (3, 8), "bias_2": (3,)}.items()}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        mlp(**right | change)
