"""A linear layer whose product runs in 8-bit floating point, and whose gradients do not.

    forward    x8, sx = quantise(x)    w8, sw = quantise(w)    y = (x8 @ w8ᵀ) · sx · sw + b    y in bf16
    backward   dx = dy @ w             dw = dyᵀ @ x            db = Σ dy                       in bf16, nothing rounded

From Ada and Hopper on, tensor cores multiply e4m3, 4 bits of exponent and 3 of mantissa, twice as fast as bf16 and
from half the bytes. An e4m3 number is at most 448, normal down to 2⁻⁶, and off by up to 6 %; a product of long rows
averages that out. Sums are kept to about 14 bits (fast accumulation; Hopper's exact one is slower). The gradient goes
straight through the rounding: it is that of the bf16 layer.

What a number has to be divided by to fall into e4m3's range is its scale, and there are two ways to it:

    DYNAMIC   each token and each output channel has its own, its largest magnitude over 448: nothing overflows, and one
              huge token takes no digits from the others. A row's largest is known where the row is written, so a
              compiler puts maximum, division and cast into the kernel that writes it. One scale for the whole tensor
              would have to wait for all of it and read it again: 6 GB in a step of GPT-2 124M with 64 · 1024 tokens,
              2 ms on an H100, where others found products with a scale per row 3 to 15 % slower, 0.3 to 1.5 ms of 10.
    STATIC    two constants, powers of two, for all activations and all weights: no maximum, and the product that the
              vendor has tuned most. What is larger is cut off (`STATIC` says where).

Casts saturate here, explicitly: PyTorch's own turn an overflow into NaN before 2.12, and its compiler's do not. A NaN
stays a NaN; an infinity becomes NaN under DYNAMIC, and the largest number under STATIC.

The casts are plain PyTorch, for the compiler to fuse; left alone they are several passes each and eat what the product
gains. Weights are cast in every forward pass, also where several make one optimizer step: 5 bytes read and written for
each, 0.2 ms per micro-batch of GPT-2 124M on an H100. Keeping the 8-bit copy would save less than that, and would have
to know when the optimizer has stepped. Elsewhere than on a GPU the same 8-bit numbers are multiplied in float64: for
tests.

Legend: M rows (tokens), K channels in, N channels out.

Source: Micikevicius et al., "FP8 formats for deep learning" (2022), https://arxiv.org/abs/2209.05433.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
SMALLEST = 1e-12  # largest magnitude that a row is taken to have, so that zeros can be divided
ALIGNMENT = 16  # channels; rows of 8-bit numbers begin at the addresses that tensor cores can load


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What e4m3's 1.0 stands for.

    Args:
        activation, weight: one number for each tensor; None, for both: each row's largest magnitude becomes 448.
    """

    activation: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if (self.activation is None) != (self.weight is None):
            raise ValueError(f"scales are {self.activation} and {self.weight}; fix both or none: a product has one")


DYNAMIC = Scales()
# Cut off are activations beyond 112 and weights beyond 3.5. Layer norm's output is at most √C = 27.7 times its weight,
# which begins at 1; GELU's output begins around 0.3; weights at a standard deviation of 0.02, of 0.004 in projections:
# all of these lie where e4m3 has its full 3 bits of mantissa, and have room to grow.
STATIC = Scales(activation=2.0**-2, weight=2.0**-7)


def quantise(tensor: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """A tensor as 8-bit numbers times a scale.

    Args:
        tensor: (rows, K), any floating type and strides.
        scale: of all; None: one for each row, from its largest magnitude.

    Returns:
        (rows, K) float8_e4m3fn, contiguous, and (1, 1) or (rows, 1) float32: the tensor is about their product.
    """
    wide = tensor.float()
    if scale is None:
        scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    else:
        scales = torch.full((1, 1), scale, dtype=torch.float32, device=tensor.device)
    return (wide / scales).clamp(-LARGEST, LARGEST).to(E4M3).contiguous(), scales


def product(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(M, K) times the transpose of (N, K), both as `quantise` returns them, plus (N,) bias: (M, N) in ``dtype``."""
    bias = None if bias is None else bias.to(dtype)
    if a.device.type == "cuda":
        return torch._scaled_mm(a, b.t(), a_scales, b_scales.t(), bias, out_dtype=dtype, use_fast_accum=True)
    exact = a.double() @ b.double().t() * a_scales * b_scales.t()
    return (exact if bias is None else exact + bias).to(dtype)


class Linear(torch.autograd.Function):
    """The whole layer; not an op of its own, so that a compiler sees every part of it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, x_scale: float | None, weight_scale: float | None):
        ctx.save_for_backward(x, weight, bias)
        return product(*quantise(x, x_scale), *quantise(weight, weight_scale), bias, x.dtype)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        dx = dy @ weight.to(dy.dtype)
        dweight = (dy.t() @ x).to(weight.dtype)
        dbias = None if bias is None else dy.sum(0, dtype=torch.float32).to(bias.dtype)
        return dx, dweight, dbias, None, None


def check(x: Tensor, weight: Tensor) -> None:
    """Raises ValueError, in one line, where x · weightᵀ cannot run in fp8."""
    if x.dtype != torch.bfloat16:
        raise ValueError(f"x is {x.dtype}; for fp8 it must be bfloat16, the type that gradients are computed in")
    if any(size % ALIGNMENT for size in weight.shape):
        raise ValueError(f"weight is {tuple(weight.shape)}; fp8 needs multiples of {ALIGNMENT} channels; pad it")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scales: Scales) -> Tensor:
    """A linear layer, multiplied in fp8 forward and in bf16 backward.

    Args:
        x: (…, K) bfloat16; cast to autocast's type where it is on.
        weight: (N, K), float32 or bfloat16; K and N multiples of 16.
        bias: (N,), float32 or bfloat16; its gradient is summed in float32.
        scales: `DYNAMIC`, `STATIC` or others.

    Returns:
        (…, N) bfloat16.

    Raises:
        ValueError: for types and shapes other than these.

    Source: https://arxiv.org/abs/2209.05433
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1] or bias is not None and bias.shape != weight.shape[:1]:
        biased = "" if bias is None else f", bias {tuple(bias.shape)}"
        shapes = f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}{biased}"
        raise ValueError(f"{shapes}; they must be (…, K), (N, K) and (N,)")
    check(x, weight)
    y = Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, scales.activation, scales.weight)
    return y.view(*x.shape[:-1], len(weight))
