"""Residual addition and LayerNorm in one pass, and their gradients in another.

Between two matrix products of a GPT-2 block lie an addition to the residual stream and the norm of the sum. Neither
computes much: their cost is reading and writing the stream. Written out, the addition writes the sum, the norm reads
it again, and under autocast its fp32 output is written, read and written once more to become bf16. The backward pass
reads the stream and the gradient for the gradient of the input, and both again for those of weight and bias.

Here one program holds whole rows in registers. Forward: read stream and branch, write their sum and, already in the
type the next product wants, its norm; mean and 1/deviation, two numbers a row, are kept. Backward: read the sum and
both gradients, write the stream's gradient and, where the branch has another type, the branch's. A program takes many
rows, one after another, and adds up its share of the weight's and the bias's gradient meanwhile; the shares are
summed afterwards. No atomics: two runs give the same bits.

It wins in eager mode, where each step of the written-out form is a kernel. Under the compiler a tie is expected: it
fuses the same chain, and can join the norm to its neighbours where this op is opaque to it; only the weight's
gradient needs another pass there.

Statistics are fp32 whatever the inputs are. They are those of the sum as it is stored, rounded, because the backward
pass sees nothing else.

Legend: N rows (tokens), C channels; S shares of the weight's gradient, one for each program.

Source: Ba, Kiros and Hinton, "Layer normalization" (2016), https://arxiv.org/abs/1607.06450.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import FLOATS, Configuration, Tuner, num_programs, on_its_device, require_device


def reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """What `residual_layer_norm` computes, in plain PyTorch; float64 stays float64."""
    stream = x + residual
    common = torch.promote_types(stream.dtype, weight.dtype)
    y = F.layer_norm(stream.to(common), weight.shape, weight.to(common), bias.to(common), eps)
    return stream, y if common == torch.float64 else y.to(dtype or stream.dtype)


@triton.jit
def residual_layer_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, stream_ptr, y_ptr, mean_ptr, rstd_ptr,
    N, eps, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    is_row, is_column = rows < N, columns < C
    inside = is_row[:, None] & is_column[None, :]
    at = rows[:, None] * C + columns[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rounded = x.to(stream_ptr.dtype.element_ty)
    tl.store(stream_ptr + at, rounded, mask=inside)

    x = rounded.to(tl.float32)
    mean = tl.sum(x, 1) / C
    centred = tl.where(is_column[None, :], x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + rows, mean, mask=is_row)
    tl.store(rstd_ptr + rows, rstd, mask=is_row)


@triton.jit
def layer_norm_gradients_kernel(
    dy_ptr, dstream_ptr, stream_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dresidual_ptr, shares_ptr,
    N, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    is_column = columns < C
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)  # summed over the rows at the end, once
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(program * ROWS, N, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS).to(tl.int64)
        inside = (rows < N)[:, None] & is_column[None, :]
        at = rows[:, None] * C + columns[None, :]
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(stream_ptr + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + rows, mask=rows < N, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < N, other=0.0)
        normed = (x - mean[:, None]) * rstd[:, None]  # columns past C are no zeros here, but meet a dy that is
        dweight += dy * normed
        dbias += dy
        scaled = dy * weight[None, :]
        along = tl.sum(scaled * normed, 1) / C
        dx = (scaled - tl.sum(scaled, 1)[:, None] / C - normed * along[:, None]) * rstd[:, None]
        if dstream_ptr is not None:
            dx += tl.load(dstream_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + at, dx.to(dresidual_ptr.dtype.element_ty), mask=inside)
    shares_ptr += program * 2 * C + columns
    tl.store(shares_ptr, tl.sum(dweight, 0), mask=is_column)
    tl.store(shares_ptr + C, tl.sum(dbias, 0), mask=is_column)


# A row over few threads needs fewer exchanges between warps for its sums, over many it needs fewer registers of each.
CONFIGURATIONS = (
    Configuration(blocks={"ROWS": 4}, num_warps=8),
    Configuration(blocks={"ROWS": 2}, num_warps=4),
    Configuration(blocks={"ROWS": 1}, num_warps=8),
)
TUNER = Tuner(residual_layer_norm_kernel, CONFIGURATIONS)
GRADIENT_CONFIGURATIONS = (
    Configuration(blocks={"ROWS": 2}, num_warps=8),
    Configuration(blocks={"ROWS": 1}, num_warps=4),
    Configuration(blocks={"ROWS": 1}, num_warps=8),
)
GRADIENT_TUNER = Tuner(layer_norm_gradients_kernel, GRADIENT_CONFIGURATIONS)
TRIAL_ROWS = 8192


def launch(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor,
    stream: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, *, eps: float, configuration: Configuration,
) -> None:  # fmt: skip
    """Runs the forward kernel: a few rows per program. Contiguous, as in `_forward`; the last four are written."""
    N, C = x.shape
    residual_layer_norm_kernel[(triton.cdiv(N, configuration.blocks["ROWS"]),)](
        x, residual, weight, bias, stream, y, mean, rstd,
        N, eps, C=C, BLOCK=triton.next_power_of_2(C), **configuration.keywords,
    )  # fmt: skip


def launch_gradients(
    dy: Tensor, dstream: Tensor | None, stream: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    dx: Tensor, dresidual: Tensor | None, *, configuration: Configuration,
) -> Tensor:  # fmt: skip
    """Runs the backward kernel; writes dx and dresidual, returns the (S, 2, C) shares of weight's and bias's."""
    N, C = stream.shape
    rows, block = configuration.blocks["ROWS"], triton.next_power_of_2(C)
    S = min(triton.cdiv(N, rows), num_programs(stream.device, rows * block, configuration.num_warps))
    shares = torch.empty(S, 2, C, dtype=torch.float32, device=stream.device)
    layer_norm_gradients_kernel[(S,)](
        dy, dstream, stream, weight, mean, rstd, dx, dresidual, shares,
        N, C=C, BLOCK=block, **configuration.keywords,
    )  # fmt: skip
    return shares


@torch.library.custom_op("stepladder::residual_layer_norm", mutates_args=())
@on_its_device
def _forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, C) x and residual -> (N, C) stream, (N, C) y, (N,) mean, (N,) 1/deviation."""
    require_device(x)
    N, C = x.shape
    stream, y, mean, rstd = _empty(x, residual, dtype)
    if N == 0:
        return stream, y, mean, rstd

    def trial():
        like = (x, residual, stream, y)
        a, b, s, o = (t.new_zeros(TRIAL_ROWS, C) for t in like)
        m = mean.new_zeros(TRIAL_ROWS)
        return lambda c: launch(a, b, weight, bias, s, o, m, m, eps=eps, configuration=c)

    configuration = TUNER.pick(x.device, (C, x.dtype, residual.dtype, dtype), trial)
    tensors = (t.contiguous() for t in (x, residual, weight, bias))
    launch(*tensors, stream, y, mean, rstd, eps=eps, configuration=configuration)
    return stream, y, mean, rstd


@_forward.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype):
    return _empty(x, residual, dtype)


def _empty(x: Tensor, residual: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `_forward` returns, not yet written."""
    N, C = x.shape
    stream = x.new_empty(N, C, dtype=torch.promote_types(x.dtype, residual.dtype))
    mean, rstd = (x.new_empty(N, dtype=torch.float32) for _ in range(2))
    return stream, x.new_empty(N, C, dtype=dtype), mean, rstd


@torch.library.custom_op("stepladder::residual_layer_norm_gradients", mutates_args=())
@on_its_device
def _gradients(
    dy: Tensor, dstream: Tensor | None, stream: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, *,
    x_dtype: torch.dtype, residual_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(N, C) gradient of x, of residual (empty if it is the same tensor), (2, C) of weight and bias in float32."""
    N, C = stream.shape
    dx, dresidual, dparameters = _empty_gradients(stream, x_dtype, residual_dtype)
    if N == 0:
        return dx, dresidual, dparameters.zero_()
    differ = x_dtype != residual_dtype

    def trial():
        like = (dy, stream, dx, dresidual) if dstream is None else (dy, stream, dx, dresidual, dstream)
        g, s, a, b, *d = (t.new_zeros(TRIAL_ROWS, C) for t in like)
        m = mean.new_zeros(TRIAL_ROWS)
        return lambda c: launch_gradients(g, *(d or [None]), s, weight, m, m, a, b if differ else None, configuration=c)

    key = (C, dy.dtype, stream.dtype, x_dtype, residual_dtype, dstream is None)
    configuration = GRADIENT_TUNER.pick(stream.device, key, trial)
    shares = launch_gradients(
        dy.contiguous(), None if dstream is None else dstream.contiguous(), stream, weight.contiguous(), mean, rstd,
        dx, dresidual if differ else None, configuration=configuration,
    )  # fmt: skip
    return dx, dresidual, shares.sum(0)


@_gradients.register_fake
def _(dy, dstream, stream, weight, mean, rstd, *, x_dtype: torch.dtype, residual_dtype: torch.dtype):
    return _empty_gradients(stream, x_dtype, residual_dtype)


def _empty_gradients(
    stream: Tensor, x_dtype: torch.dtype, residual_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_gradients` returns, not yet written."""
    N, C = stream.shape
    dresidual = stream.new_empty((N, C) if x_dtype != residual_dtype else 0, dtype=residual_dtype)
    return stream.new_empty(N, C, dtype=x_dtype), dresidual, stream.new_empty(2, C, dtype=torch.float32)


def _keep(ctx, inputs: tuple, keyword_only_inputs: dict, output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # after the last norm nobody reads the stream: no zeros need be made and read
    x, residual, weight, bias = inputs
    stream, _, mean, rstd = output
    ctx.save_for_backward(stream, weight, mean, rstd)
    ctx.dtypes = x.dtype, residual.dtype, bias.dtype, keyword_only_inputs["dtype"]


def _differentiate(ctx, dstream: Tensor | None, dy: Tensor | None, *_: object) -> tuple[Tensor, ...]:
    stream, weight, mean, rstd = ctx.saved_tensors
    x_dtype, residual_dtype, bias_dtype, dtype = ctx.dtypes
    if dy is None:
        dy = torch.zeros_like(stream, dtype=dtype)
    dx, dresidual, dparameters = _gradients(
        dy, dstream, stream, weight, mean, rstd, x_dtype=x_dtype, residual_dtype=residual_dtype
    )
    same = x_dtype == residual_dtype
    return dx, dx if same else dresidual, dparameters[0].to(weight.dtype), dparameters[1].to(bias_dtype)


_forward.register_autograd(_differentiate, setup_context=_keep)


def residual_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of two tensors, and the LayerNorm of the sum.

    Args:
        x: (…, C) float16, bfloat16 or float32: the residual stream.
        residual: (…, C), any of these types: what is added to it.
        weight, bias: (C,), any of these types; their gradients are summed in float32.
        eps: added to the variance.
        dtype: of the norm. None: autocast's where it is on, else that of the sum.

    Returns:
        (…, C) the sum, in the wider of the two types, and (…, C) its norm.

    Raises:
        ValueError: on a device without Triton, or for shapes and types other than these.

    Source: https://arxiv.org/abs/1607.06450
    """
    given = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    for name, tensor in given.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}; it must be float16, bfloat16 or float32")
    if x.dim() == 0 or residual.shape != x.shape or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        raise ValueError(f"the shapes are {shapes}; they must be (…, C), (…, C), (C,) and (C,)")
    if dtype is None and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    dtype = dtype or torch.promote_types(x.dtype, residual.dtype)
    rows = [t.reshape(-1, x.shape[-1]) for t in (x, residual)]  # (N, C)
    stream, y, _, _ = _forward(*rows, weight, bias, eps=eps, dtype=dtype)
    return stream.view(x.shape), y.view(x.shape)
