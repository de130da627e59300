"""Bias and GELU in one pass, and in the backward pass the bias's gradient with GELU's.

A linear layer before a GELU adds its bias at the end of the matrix product, where it costs nothing; GELU is then a
kernel of its own that reads and writes the widest activation of a block. Adding the bias here instead saves nothing
in the forward pass but one rounding. It pays in the backward pass: the gradient that GELU's kernel has just written
is read once more, whole, only to be summed into the bias's gradient. Here the program that computes it adds it up on
the way, over its own rows of a few columns, and the shares are summed afterwards, without atomics: two runs give the
same bits.

For eager mode. The compiler fuses GELU with its neighbours and the sum with GELU's gradient, and an opaque op stands
in its way: there this loses. `kernels.linear_gelu` is the form that can win there.

GELU is the tanh form GPT-2 uses, written with a sigmoid, which is the same function and does not cancel for negative
numbers: ½(1 + tanh z) = sigmoid(2z).

Legend: N rows (tokens), F channels; S shares of the bias's gradient.

Source: Hendrycks and Gimpel, "Gaussian error linear units" (2016), https://arxiv.org/abs/1606.08415.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import FLOATS, Configuration, Tuner, num_programs, on_its_device, require_device


def reference(x: Tensor, bias: Tensor) -> Tensor:
    """What `bias_gelu` computes, in plain PyTorch."""
    return F.gelu(x + bias.to(x.dtype), approximate="tanh")


@triton.jit
def gelu_exponential(x):
    """exp(-2z) with z = sqrt(2/π)·(x + 0.044715·x³); GELU is x / (1 + exp(-2z))."""
    return tl.exp(-1.5957691216057308 * x * (1.0 + 0.044715 * x * x))


@triton.jit
def gelu(x):
    """tanh-GELU of float32."""
    return x / (1.0 + gelu_exponential(x))


@triton.jit
def gelu_slope(x):
    """Its derivative, s + x·s·(1 - s)·2z' with s = sigmoid(2z); 1 - s from the exponential, not from s near 1."""
    x = tl.minimum(tl.maximum(x, -10.0), 10.0)  # beyond, it is 0 or 1, and infinity times zero
    e = gelu_exponential(x)
    s = 1.0 / (1.0 + e)
    return s + x * s * (e * s) * 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * x * x)


@triton.jit
def bias_gelu_kernel(
    x_ptr, bias_ptr, y_ptr, N, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < CHANNELS
    at, inside = rows[:, None] * CHANNELS + columns[None, :], (rows < N)[:, None] & is_column[None, :]
    bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, gelu(x + bias[None, :]).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def bias_gelu_gradients_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, shares_ptr, N, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < CHANNELS
    bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)  # summed over the rows at the end, once
    for first in range(tl.program_id(0) * ROWS, N, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS).to(tl.int64)
        at, inside = rows[:, None] * CHANNELS + columns[None, :], (rows < N)[:, None] & is_column[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dx = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32) * gelu_slope(x + bias[None, :])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dbias += dx
    tl.store(shares_ptr + tl.program_id(0) * CHANNELS + columns, tl.sum(dbias, 0), mask=is_column)


CONFIGURATIONS = (
    Configuration(blocks={"ROWS": 4, "COLUMNS": 512}, num_warps=4),
    Configuration(blocks={"ROWS": 1, "COLUMNS": 1024}, num_warps=4),
    Configuration(blocks={"ROWS": 8, "COLUMNS": 256}, num_warps=8),
)
TUNER = Tuner(bias_gelu_kernel, CONFIGURATIONS)
GRADIENT_TUNER = Tuner(bias_gelu_gradients_kernel, CONFIGURATIONS)
TRIAL_ROWS = 4096
TURNS = 2  # times the device is filled: programs end at different times, and many small ones even that out


def launch(x: Tensor, bias: Tensor, y: Tensor, *, configuration: Configuration) -> None:
    """Runs the forward kernel: a tile per program. All contiguous: x (N, F), bias (F,), y like x, which is written."""
    N, channels = x.shape
    blocks = configuration.blocks
    grid = (triton.cdiv(N, blocks["ROWS"]), triton.cdiv(channels, blocks["COLUMNS"]))
    bias_gelu_kernel[grid](x, bias, y, N, CHANNELS=channels, **configuration.keywords)


def launch_gradients(dy: Tensor, x: Tensor, bias: Tensor, dx: Tensor, *, configuration: Configuration) -> Tensor:
    """Runs the backward kernel: a few columns of many rows per program; writes dx, returns the (S, F) shares."""
    N, channels = x.shape
    blocks = configuration.blocks
    across = triton.cdiv(channels, blocks["COLUMNS"])
    programs = TURNS * num_programs(x.device, blocks["ROWS"] * blocks["COLUMNS"], configuration.num_warps)
    S = min(triton.cdiv(N, blocks["ROWS"]), triton.cdiv(programs, across))
    shares = torch.empty(S, channels, dtype=torch.float32, device=x.device)
    bias_gelu_gradients_kernel[(S, across)](dy, x, bias, dx, shares, N, CHANNELS=channels, **configuration.keywords)
    return shares


@torch.library.custom_op("stepladder::bias_gelu", mutates_args=())
@on_its_device
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU in its tanh form of x + bias.

    Args:
        x: (…, F) float16, bfloat16 or float32.
        bias: (F,), any of these types; added in float32, its gradient is summed in float32.

    Returns:
        (…, F), the dtype of ``x``.

    Raises:
        ValueError: on a device without Triton, or for shapes and types other than these.

    Source: https://arxiv.org/abs/1606.08415
    """
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}; it must be float16, bfloat16 or float32")
    if x.dim() == 0 or bias.shape != x.shape[-1:]:
        raise ValueError(f"x is {tuple(x.shape)}, bias {tuple(bias.shape)}; they must be (…, F) and (F,)")
    require_device(x)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.empty_like(rows)
    if len(rows):

        def trial():
            scratch = rows.new_zeros(TRIAL_ROWS, rows.shape[1])
            out = torch.empty_like(scratch)
            return lambda c: launch(scratch, bias.contiguous(), out, configuration=c)

        configuration = TUNER.pick(x.device, (rows.shape[1], x.dtype), trial)
        launch(rows, bias.contiguous(), y, configuration=configuration)
    return y.view(x.shape)


@bias_gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("stepladder::bias_gelu_gradients", mutates_args=())
@on_its_device
def _gradients(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Like x: its gradient; (F,) float32: the bias's."""
    channels = x.shape[-1]
    dy, rows = (t.reshape(-1, channels).contiguous() for t in (dy, x))
    dx = torch.empty_like(rows)
    if not len(rows):
        return dx.view(x.shape), bias.new_zeros(channels, dtype=torch.float32)

    def trial():
        scratch = rows.new_zeros(TRIAL_ROWS, channels)
        out = torch.empty_like(scratch)
        return lambda c: launch_gradients(scratch, scratch, bias.contiguous(), out, configuration=c)

    configuration = GRADIENT_TUNER.pick(x.device, (channels, x.dtype), trial)
    shares = launch_gradients(dy, rows, bias.contiguous(), dx, configuration=configuration)
    return dx.view(x.shape), shares.sum(0)


@_gradients.register_fake
def _(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape, dtype=torch.float32)


def _keep(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    dx, dbias = _gradients(dy, x, bias)
    return dx, dbias.to(bias.dtype)


bias_gelu.register_autograd(_differentiate, setup_context=_keep)
