"""Products in fp8: against float64 on numbers rounded by e4m3's definition, gradients against the bf16 layer's.

Without a GPU the 8-bit numbers are multiplied in float64. Whether PyTorch's product would take them on a GPU is then
asked of its own checks, which run on tensors without numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import fp8
from kernels.fp8 import DYNAMIC, E4M3, LARGEST, STATIC, Scales, linear, quantise
from model import GPT2, GPT2Config
from tests.kernels.oracle import DEVICE, assert_as_good, differentiate, draw, twin

pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="this GPU has no fp8 arithmetic"
)
BF16 = torch.bfloat16
# Without a GPU a graph is made and run, but no C++ of it: that takes ten seconds and is not what will run on a GPU.
BACKEND = "inductor" if DEVICE.type == "cuda" else "aot_eager"
ALL_SCALES = pytest.mark.parametrize("scales", [DYNAMIC, STATIC], ids=["dynamic", "static"])


def nearest_e4m3(x: Tensor) -> Tensor:
    """Float64 numbers rounded to e4m3 by its definition: 3 bits after the first, none below 2⁻⁹, none above 448."""
    exponent = x.abs().clamp(min=2.0**-6).log2().floor()
    step = torch.exp2(exponent - 3)
    return ((x / step).round() * step).clamp(-448.0, 448.0)  # round() is to even


def rounded(tensor: Tensor, scale: float | None) -> Tensor:
    """A matrix through fp8 and back, in float64; quotients are fp32, which decides on which side of a tie they fall."""
    wide = tensor.float()
    scales = torch.tensor(scale or 1.0).to(wide)
    if scale is None:
        scales = torch.stack([row.abs().max() for row in wide])[:, None].clamp(min=1e-12) / 448.0
    return nearest_e4m3((wide / scales).double()) * scales.double()


def truth(x: Tensor, weight: Tensor, bias: Tensor | None, scales: Scales) -> Tensor:
    y = rounded(x.flatten(0, -2), scales.activation) @ rounded(weight, scales.weight).t()
    if bias is not None:
        y = y + bias.to(x.dtype).double()
    return y.view(*x.shape[:-1], -1)


def inputs(rows: int = 24, channels: int = 48, out: int = 32, *, bias: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """As in training: x normed, in bf16; parameters fp32."""
    made = {
        "x": draw(rows, channels, dtype=BF16, seed=seed),
        "weight": draw(out, channels, scale=0.02, seed=seed + 1),
    }
    return made | ({"bias": draw(out, scale=0.02, seed=seed + 2)} if bias else {})


def verify(function: Callable, given: dict[str, Tensor], scales: Scales) -> None:
    """Forward to the rounding of bf16 and of a GPU's sums; gradients as good as the bf16 layer's."""
    x, weight, bias = given["x"], given["weight"], given.get("bias")
    found = differentiate(partial(function, scales=scales), given)
    y, exact = found.pop("output 0"), truth(x, weight, bias, scales)
    assert y.dtype == BF16 and y.shape == exact.shape
    # Fast accumulation keeps some 14 bits of sums of terms as large as this; a processor's are exact.
    terms = (x.double().flatten(0, -2).abs() @ weight.double().abs().t()).view(exact.shape)
    allowed = 2.0**-8 * exact.abs() + (2.0**-10 if DEVICE.type == "cuda" else 2.0**-40) * terms + 1e-30
    excess = (y.double() - exact).abs() / allowed
    assert excess.max() <= 1, f"the output is off by {excess.max():.3g} of what is allowed"  # also false for NaN

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    eager, wide = differentiate(layer, given), differentiate(layer, {k: v.double() for k, v in given.items()})
    for results in (eager, wide):
        del results["output 0"]
    assert_as_good(found, eager, wide)


@ALL_SCALES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "channels", "out"), [(1, 16, 16), (24, 48, 32), (33, 64, 112), (7, 768, 64)])
def test_forward_and_every_gradient(rows: int, channels: int, out: int, bias: bool, scales: Scales) -> None:
    """Any number of tokens, one among them; channels in steps of 16."""
    verify(linear, inputs(rows, channels, out, bias=bias), scales)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20),
    channels=st.integers(1, 6),
    out=st.integers(1, 6),
    size=st.floats(-30, 30),
    scales=st.sampled_from([DYNAMIC, STATIC, Scales(activation=2.0**3, weight=2.0**-9)]),
    seed=st.integers(0, 99),
)
def test_drawn_shapes_and_sizes(rows, channels, out, size, scales, seed) -> None:
    """From numbers that fixed scales lose entirely to such as they cut off; what is decided is by e4m3 alone."""
    given = inputs(rows, 16 * channels, 16 * out, seed=seed)
    verify(linear, given | {"x": given["x"] * 2.0**size}, scales)


@ALL_SCALES
def test_batches_and_strides(scales: Scales) -> None:
    given = inputs(24)
    flat = linear(**given, scales=scales)
    shaped = linear(given["x"].view(2, 3, 4, -1), given["weight"], given["bias"], scales=scales)
    assert shaped.shape == (2, 3, 4, 32) and torch.equal(shaped.flatten(0, -2), flat)
    strided = {name: given[name].t().contiguous().t() for name in ("x", "weight")}
    verify(linear, given | strided, scales)
    verify(linear, given | {"x": draw(24, 96, dtype=BF16)[:, ::2]}, scales)


def test_under_autocast_and_with_parameters_in_bf16() -> None:
    given = inputs()
    expected = linear(**given, scales=DYNAMIC)
    with torch.autocast(DEVICE.type, BF16):
        assert torch.equal(linear(given["x"].float(), given["weight"], given["bias"], scales=DYNAMIC), expected)
    verify(linear, {name: tensor.to(BF16) for name, tensor in given.items()}, DYNAMIC)


def test_every_e4m3_number_is_kept() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    numbers = numbers[numbers.isfinite()].to(DEVICE)
    assert len(numbers) == 254 and numbers.max() == LARGEST
    for scale in (1.0, 2.0**-7):
        eighths, scales = quantise(numbers[None] * scale, scale)
        assert torch.equal(eighths.float()[0], numbers) and scales.shape == (1, 1) and scales.item() == scale
    eighths, scales = quantise(numbers[None] * 0.5, None)
    assert torch.equal(eighths.float()[0], numbers) and scales.item() == 0.5
    torch.testing.assert_close(nearest_e4m3(numbers.double()), numbers.double(), rtol=0, atol=0)  # the oracle too


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("size", [1e-30, 1e-11, 1e-3, 1.0, 1e4, 1e30])
def test_a_rows_largest_number_sets_its_scale(size: float, dtype: torch.dtype) -> None:
    """Rows of very different sizes beside each other: each keeps its digits, but for those that are all but zero."""
    rows = torch.cat([draw(3, 64, scale=size), draw(3, 64, seed=1), torch.zeros(2, 64, device=DEVICE)]).to(dtype)
    eighths, scales = quantise(rows, None)
    assert (eighths.dtype, scales.dtype) == (E4M3, torch.float32)
    assert eighths.is_contiguous() and scales.shape == (8, 1)
    back = eighths.double() * scales.double()
    largest = rows.double().abs().amax(dim=1, keepdim=True)
    error = (back - rows.double()).abs()
    assert (error <= 2.0**-4 * rows.double().abs() * 1.001 + largest.clamp(min=1e-12) * 2.0**-9 / 448).all()
    if size > 1e-12:
        assert (eighths.float()[:6].abs().amax(dim=1) == LARGEST).all()
    assert not back[6:].any()


def test_what_is_too_large_for_a_fixed_scale_is_cut_off() -> None:
    for scale, limit in ((STATIC.activation, 112.0), (STATIC.weight, 3.5)):
        given = torch.tensor([[limit, limit * 1.04, limit * 1.2, 1e30, torch.inf]], device=DEVICE)
        for sign in (1.0, -1.0):
            eighths, scales = quantise(sign * given, scale)
            assert ((eighths.float() * scales) == sign * limit).all()


def test_numbers_that_are_none_are_never_hidden_by_dynamic_scales() -> None:
    given = inputs(rows=3)
    for wrong in (torch.nan, torch.inf):
        x = given["x"].clone()
        x[1, 5] = wrong
        found = linear(x, given["weight"], given["bias"], scales=DYNAMIC).isnan()
        assert found[1].all() and not found[0].any() and not found[2].any()
    x[1, 5] = torch.nan
    assert linear(x, given["weight"], scales=STATIC)[1].isnan().all()


def test_memory_between_the_passes_is_that_of_the_16_bit_layer() -> None:
    """Kept are x and the parameter itself: no 8-bit copies, no cast of the weight."""
    given = {name: tensor.requires_grad_() for name, tensor in inputs().items()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(**given, scales=DYNAMIC)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in given.values()}


def on_a_gpu(module: ModuleType, scales: Scales, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of a GPU that need not be there: shapes, strides and types, and PyTorch's checks of them."""

    def there(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")

    given = (*module.quantise(x, scales.activation), *module.quantise(weight, scales.weight), bias)
    with FakeTensorMode():
        return module.product(*map(there, given), BF16)


@ALL_SCALES
@pytest.mark.parametrize("bias", [True, False])
def test_a_gpus_product_takes_what_it_is_given(bias: bool, scales: Scales) -> None:
    given = inputs(5, bias=bias)
    strided = given | {name: given[name].t().contiguous().t() for name in ("x", "weight")}
    for arguments in (given, strided, inputs(1, bias=bias)):
        y = on_a_gpu(fp8, scales, **arguments)
        assert (y.dtype, y.shape, y.device.type) == (BF16, (len(arguments["x"]), 32), "cuda")


def test_pytorchs_own_product_agrees_here() -> None:
    """The one with a scale for each factor; a processor's version has it in every release."""
    a, b = quantise(draw(24, 48), STATIC.activation), quantise(draw(32, 48, scale=0.02, seed=1), STATIC.weight)
    bias = draw(32, dtype=BF16, seed=2)
    theirs = torch._scaled_mm(a[0], b[0].t(), a[1], b[1].t(), bias, out_dtype=BF16, use_fast_accum=True)
    torch.testing.assert_close(fp8.product(*a, *b, bias, BF16), theirs, rtol=2.0**-7, atol=1e-4)


BUGS = {
    "scales forgotten": (".to(E4M3).contiguous(), scales", ".to(E4M3).contiguous(), torch.ones_like(scales)"),
    "the first row's scale": ("wide.abs().amax(dim=-1, keepdim=True)", "wide[0].abs().amax().expand(len(wide), 1)"),
    "a scale a tenth too small": ("LARGEST\n    else", "(1.1 * LARGEST)\n    else"),
    "the weight's gradient of rounded numbers": ("dy.t() @ x)", "dy.t() @ quantise(x, None)[0].to(x.dtype))"),
    "the gradient through rounded weights": ("dy @ weight.to(dy.dtype)", "dy @ weight.to(E4M3).to(dy.dtype)"),
    "the first row's gradient for the bias": ("dy.sum(0,", "dy[:1].sum(0,"),
    "no bias": ("*quantise(weight, weight_scale), bias,", "*quantise(weight, weight_scale), None,"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    given, planted = inputs(), twin(fp8, *BUGS[bug], tmp_path)
    verify(linear, given, DYNAMIC)
    with pytest.raises(AssertionError, match="is off by"):
        verify(planted.linear, given, DYNAMIC)


def test_a_planted_bug_in_what_only_a_gpu_runs_is_found(tmp_path: Path) -> None:
    given = inputs() | {"x": inputs()["x"].t().contiguous().t()}
    for old, new, complaint in (
        ("b.t(), a_scales", "b.view(b.shape[::-1]), a_scales", "mat2 must be col_major"),
        ("a_scales, b_scales.t()", "a_scales, b_scales", "Invalid scaling configuration"),
        (".to(E4M3).contiguous()", ".to(E4M3)", "self must be row_major"),
    ):
        with pytest.raises(RuntimeError, match=complaint):
            on_a_gpu(twin(fp8, old, new, tmp_path), DYNAMIC, **given)


@ALL_SCALES
def test_it_can_be_compiled_into_one_graph(scales: Scales) -> None:
    given = inputs()
    leaves = [tensor.requires_grad_() for tensor in given.values()]

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, BF16):
            return linear(F.gelu(x, approximate="tanh"), weight, bias, scales=scales).float().square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend=BACKEND)
    for ours, theirs in zip(*(torch.autograd.grad(f(**given), leaves) for f in (compiled, layer)), strict=True):
        # The compiler rounds to bf16 less often, so a number here and there falls to e4m3's other neighbour.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05 * float(theirs.abs().max()))


@pytest.mark.parametrize(("loss", "head", "compiled"), [("triton", "fp8_static", False), ("chunked", "fp8", True)])
def test_any_loss_takes_its_logits_from_fp8(loss: str, head: str, compiled: bool, monkeypatch) -> None:
    """In the model: as the written-out loss does, and with its gradients."""
    monkeypatch.setattr("kernels.linear_cross_entropy.chunk_rows_for", lambda *_: 4)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=32, n_positions=5, vocab_size=91, padded_vocab_size=96, head=head)
    idx = torch.randint(91, (2, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    results = []
    for choice in ({"head": "written_out"}, {}, {"loss": loss}):
        torch.manual_seed(0)
        model = GPT2(replace(config, **choice)).to(DEVICE)
        forward = torch.compile(model, fullgraph=True, backend=BACKEND) if compiled and "loss" in choice else model
        with torch.autocast(DEVICE.type, BF16):
            value = forward(idx[:, :-1], idx[:, 1:])
        value.backward()
        results.append([value.detach(), *(p.grad for p in model.parameters())])
    plain, expected, found = results
    assert abs(plain[0] - expected[0]) > 1e-4 > 5 * abs(found[0] - expected[0])  # it is indeed on
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2.0**-6 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 32)}, "x is torch.float32; for fp8 it must be bfloat16"),
        ({"weight": torch.zeros(17, 32), "bias": None}, r"weight is \(17, 32\); fp8 needs multiples of 16 channels;"),
        ({"x": torch.zeros(4, 24, dtype=BF16), "weight": torch.zeros(16, 24)}, r"weight is \(16, 24\); fp8 needs"),
        ({"weight": torch.zeros(16, 48)}, r"x is \(4, 32\), weight \(16, 48\), bias \(16,\); they must be"),
        ({"bias": torch.zeros(32)}, r"weight \(16, 32\), bias \(32,\); they must be"),
    ],
)
def test_wrong_inputs_are_refused_by_name(change: dict, message: str) -> None:
    right = {"x": torch.zeros(4, 32, dtype=BF16), "weight": torch.zeros(16, 32), "bias": torch.zeros(16)}
    with pytest.raises(ValueError, match=message) as error:
        linear(**right | change, scales=DYNAMIC)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="scales are 0.5 and None; fix both or none"):
        Scales(activation=0.5)
