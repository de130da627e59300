"""GPT-2's MLP with both GELU passes inside matrix products: linear, bias and GELU in one, and in the backward pass the
gradient through the second linear layer, GELU's derivative and the first bias's gradient in another.

    pre = x @ W1ᵀ + b1        h = gelu(pre)          y = h @ W2ᵀ + b2
    dpre = (dy @ W2) · gelu'(pre)     db1 = Σ dpre     dx = dpre @ W1     dW1 = dpreᵀ @ x     dW2 = dyᵀ @ h

pre, h and their gradients are the widest activations of a block: 64 · 1024 tokens times 3072 channels are 0.4 GB each
in bf16. A vendor's product has to write its result before anything else can look at it. Ours still holds a tile of it
in registers, in fp32, when the sums are done, and applies what comes next before the one write:

    forward    writes pre, if there will be a backward pass, and h; saved: reading pre again
    backward   reads pre, writes dpre; saved: writing and reading dy @ W2, and reading dpre again for db1

The first bias's gradient is summed over each tile's rows, one line a tile, and the lines afterwards: no atomics, two
runs give the same bits. What has nothing to fuse (y, dx, dW1, dW2) stays with the vendor's products.

The price: a Triton product is slower than the vendor's where the vendor uses what Triton's plain loads cannot, as on
Hopper; on older cards they are about equal. So it is won where memory is slow beside arithmetic, and in the backward
pass before the forward. Not measured yet. In fp32 it obeys PyTorch's precision of products; there is one
configuration for it, made for being right and not for speed.

Tiles are taken in groups of rows, so that those in flight together share weights and rows in the second-level cache.

Legend: N rows (tokens), C channels, F wide channels (4C), O channels out (C); in the kernels K is the length of the
sums.

Source: tiles and their order: Tillet, Kung and Cox, "Triton" (2019), https://dl.acm.org/doi/10.1145/3315508.3329973;
GELU: Hendrycks and Gimpel, "Gaussian error linear units" (2016).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias_gelu import gelu, gelu_slope
from kernels.launching import FLOATS, Configuration, Tuner, on_its_device, require_device


def reference(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
    """What `mlp` computes, in plain PyTorch."""
    h = F.gelu(F.linear(x, weight_1, bias_1.to(x.dtype)), approximate="tanh")
    return F.linear(h, weight_2, bias_2.to(x.dtype))


@triton.jit
def tile_of_program(N, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """(row tile, column tile): GROUP row tiles go through all column tiles side by side."""
    per_group = GROUP * tl.cdiv(WIDE, COLUMNS)
    first = tl.program_id(0) // per_group * GROUP
    height = tl.minimum(tl.cdiv(N, ROWS) - first, GROUP)
    within = tl.program_id(0) % per_group
    return first + within % height, within // height


@triton.jit
def product(
    a_ptr, b_ptr, is_row, columns, K: tl.constexpr, WIDE: tl.constexpr,
    K_STRIDE: tl.constexpr, WIDE_STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One (ROWS, COLUMNS) tile of a @ b in fp32: a's rows begin at a_ptr, K long; b is (K, WIDE) with these strides."""
    k = tl.arange(0, DEPTH)
    a_at = a_ptr + tl.arange(0, ROWS)[:, None] * K + k[None, :]
    b_at = b_ptr + k[:, None] * K_STRIDE + columns[None, :] * WIDE_STRIDE
    a_inside, b_inside = is_row[:, None], (columns < WIDE)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, DEPTH):
        if K % DEPTH == 0:
            a = tl.load(a_at, mask=a_inside, other=0.0)
            b = tl.load(b_at, mask=b_inside, other=0.0)
        else:
            a = tl.load(a_at, mask=a_inside & (k < K - start)[None, :], other=0.0)
            b = tl.load(b_at, mask=b_inside & (k < K - start)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        a_at += DEPTH
        b_at += DEPTH * K_STRIDE
    return total


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile, to be finished one after the other in half the registers."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def finish_forward(pre, bias_ptr, h_ptr, pre_ptr, is_row, columns, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """Adds the bias, applies GELU, writes; h and pre begin at the tile's first row."""
    pre += tl.load(bias_ptr + columns, mask=columns < WIDE, other=0.0).to(tl.float32)[None, :]
    at = tl.arange(0, ROWS)[:, None] * WIDE + columns[None, :]
    inside = is_row[:, None] & (columns < WIDE)[None, :]
    tl.store(h_ptr + at, gelu(pre).to(h_ptr.dtype.element_ty), mask=inside)
    if pre_ptr is not None:  # after h: before it, one compiler runs out of registers
        tl.store(pre_ptr + at, pre.to(pre_ptr.dtype.element_ty), mask=inside)


@triton.jit
def linear_gelu_kernel(
    x_ptr, weight_ptr, bias_ptr, h_ptr, pre_ptr,
    N, K: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile_of_program(N, WIDE, ROWS, COLUMNS, GROUP)
    first = row_tile.to(tl.int64) * ROWS
    is_row = tl.arange(0, ROWS) < N - first
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    x_ptr += first * K
    h_ptr += first * WIDE
    if pre_ptr is not None:
        pre_ptr += first * WIDE
    pre = product(x_ptr, weight_ptr, is_row, columns, K, WIDE, 1, K, PRECISION, ROWS, COLUMNS, DEPTH)
    left, right = halves(pre, ROWS, COLUMNS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS // 2)
    finish_forward(left, bias_ptr, h_ptr, pre_ptr, is_row, columns, WIDE, ROWS)
    finish_forward(right, bias_ptr, h_ptr, pre_ptr, is_row, columns + COLUMNS // 2, WIDE, ROWS)


@triton.jit
def finish_backward(dh, pre_ptr, dpre_ptr, share_ptr, is_row, columns, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """Applies GELU's derivative, writes, sums over the tile's rows; pre and dpre begin at the first of them."""
    at = tl.arange(0, ROWS)[:, None] * WIDE + columns[None, :]
    inside = is_row[:, None] & (columns < WIDE)[None, :]
    dpre = dh * gelu_slope(tl.load(pre_ptr + at, mask=inside, other=0.0).to(tl.float32))
    tl.store(dpre_ptr + at, dpre.to(dpre_ptr.dtype.element_ty), mask=inside)
    tl.store(share_ptr + columns, tl.sum(dpre, 0), mask=columns < WIDE)  # rows past N are zeros


@triton.jit
def gelu_gradient_kernel(
    dy_ptr, weight_ptr, pre_ptr, dpre_ptr, shares_ptr,
    N, K: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile_of_program(N, WIDE, ROWS, COLUMNS, GROUP)
    first = row_tile.to(tl.int64) * ROWS
    is_row = tl.arange(0, ROWS) < N - first
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    dy_ptr += first * K
    pre_ptr += first * WIDE
    dpre_ptr += first * WIDE
    shares_ptr += row_tile * WIDE
    dh = product(dy_ptr, weight_ptr, is_row, columns, K, WIDE, WIDE, 1, PRECISION, ROWS, COLUMNS, DEPTH)
    left, right = halves(dh, ROWS, COLUMNS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS // 2)
    finish_backward(left, pre_ptr, dpre_ptr, shares_ptr, is_row, columns, WIDE, ROWS)
    finish_backward(right, pre_ptr, dpre_ptr, shares_ptr, is_row, columns + COLUMNS // 2, WIDE, ROWS)


# Larger tiles read each operand less often, and leave fewer programs to share a small card out to.
CONFIGURATIONS = (
    Configuration(blocks={"ROWS": 64, "COLUMNS": 128, "DEPTH": 32, "GROUP": 8}, num_warps=4, num_stages=4),
    Configuration(blocks={"ROWS": 128, "COLUMNS": 128, "DEPTH": 32, "GROUP": 8}, num_warps=8, num_stages=4),
    Configuration(blocks={"ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "GROUP": 8}, num_warps=8, num_stages=3),
    Configuration(
        blocks={"ROWS": 128, "COLUMNS": 256, "DEPTH": 64, "GROUP": 8}, num_warps=8, num_stages=3, shared_kib=163
    ),
)
TUNER = Tuner(linear_gelu_kernel, CONFIGURATIONS)
GRADIENT_TUNER = Tuner(gelu_gradient_kernel, CONFIGURATIONS)
FLOAT32 = Configuration(blocks={"ROWS": 32, "COLUMNS": 64, "DEPTH": 32, "GROUP": 8}, num_warps=4, num_stages=2)
TRIAL_ROWS = (128, 16384)  # fewer and more than these count as these


def launch(
    x: Tensor, weight: Tensor, bias: Tensor, h: Tensor, pre: Tensor | None, *,
    precision: str, configuration: Configuration,
) -> None:  # fmt: skip
    """Runs the forward kernel: a tile of h per program. All contiguous: x (N, C), weight (F, C), bias (F,); h and pre,
    (N, F), are written."""
    wide, K = weight.shape
    linear_gelu_kernel[grid(len(x), wide, configuration)](
        x, weight, bias, h, pre, len(x), K=K, WIDE=wide, PRECISION=precision, **configuration.keywords
    )


def launch_gradient(
    dy: Tensor, weight: Tensor, pre: Tensor, dpre: Tensor, *, precision: str, configuration: Configuration
) -> Tensor:
    """Runs the backward kernel: a tile of dpre per program. All contiguous: dy (N, O), weight (O, F), pre (N, F); dpre,
    like pre, is written. Returns each row tile's share of the bias's gradient, (tiles, F)."""
    K, wide = weight.shape
    row_tiles = triton.cdiv(len(dy), configuration.blocks["ROWS"])
    shares = torch.empty(row_tiles, wide, dtype=torch.float32, device=dy.device)
    gelu_gradient_kernel[grid(len(dy), wide, configuration)](
        dy, weight, pre, dpre, shares, len(dy), K=K, WIDE=wide, PRECISION=precision, **configuration.keywords
    )
    return shares


def grid(N: int, wide: int, configuration: Configuration) -> tuple[int]:
    """One program for each tile of an (N, wide) result."""
    return (triton.cdiv(N, configuration.blocks["ROWS"]) * triton.cdiv(wide, configuration.blocks["COLUMNS"]),)


def precision() -> str:
    """Of products of fp32 numbers, as PyTorch's are set to."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def trial_rows(N: int) -> int:
    """The class of sizes that N rows belong to: a power of two."""
    return min(max(triton.next_power_of_2(N), TRIAL_ROWS[0]), TRIAL_ROWS[1])


@torch.library.custom_op("stepladder::mlp", mutates_args=())
@on_its_device
def _mlp(
    x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, O) output, (N, F) h and (N, F) pre; the last two are empty unless kept."""
    require_device(x)
    (N, K), wide = x.shape, len(weight_1)
    x, weight, bias = x.contiguous(), weight_1.contiguous(), bias_1.contiguous()
    h = x.new_empty(N, wide)
    pre = torch.empty_like(h) if keep else None

    def trial():
        n = trial_rows(N)
        a, out = x.new_zeros(n, K), x.new_empty(n, wide)
        kept = torch.empty_like(out) if keep else None
        return lambda c: launch(a, weight, bias, out, kept, precision=precision(), configuration=c)

    if N:
        key = (trial_rows(N), K, wide, x.dtype, keep)
        c = FLOAT32 if x.dtype == torch.float32 else TUNER.pick(x.device, key, trial)
        launch(x, weight, bias, h, pre, precision=precision(), configuration=c)
    y = F.linear(h, weight_2, bias_2.to(h.dtype))
    return (y, h, pre) if keep else (y, h.new_empty(0), h.new_empty(0))


@_mlp.register_fake
def _(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor, *, keep: bool):
    wide = (x.shape[0], weight_1.shape[0]) if keep else (0,)
    return x.new_empty(x.shape[0], weight_2.shape[0]), x.new_empty(wide), x.new_empty(wide)


@torch.library.custom_op("stepladder::mlp_gradient", mutates_args=())
@on_its_device
def _gradient(dy: Tensor, weight_2: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    """(N, F) gradient of pre, (F,) of the first bias in float32."""
    (N, K), wide = dy.shape, pre.shape[1]
    dy, weight = dy.contiguous(), weight_2.contiguous()
    dpre = torch.empty_like(pre)
    if N == 0:
        return dpre, pre.new_zeros(wide, dtype=torch.float32)

    def trial():
        n = trial_rows(N)
        a, kept = dy.new_zeros(n, K), pre.new_zeros(n, wide)
        out = torch.empty_like(kept)
        return lambda c: launch_gradient(a, weight, kept, out, precision=precision(), configuration=c)

    key = (trial_rows(N), K, wide, dy.dtype)
    c = FLOAT32 if dy.dtype == torch.float32 else GRADIENT_TUNER.pick(dy.device, key, trial)
    return dpre, launch_gradient(dy, weight, pre, dpre, precision=precision(), configuration=c).sum(0)


@_gradient.register_fake
def _(dy: Tensor, weight_2: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(pre), pre.new_empty(pre.shape[1], dtype=torch.float32)


def _keep(ctx, inputs: tuple[Tensor, ...], keyword_only_inputs: dict, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # nobody differentiates what is only kept: no zeros need be made for it
    x, weight_1, bias_1, weight_2, bias_2 = inputs
    ctx.save_for_backward(x, weight_1, weight_2, *output[1:])
    ctx.bias_dtypes = bias_1.dtype, bias_2.dtype


def _differentiate(ctx, dy: Tensor, *_: object) -> tuple[Tensor, ...]:
    """Products that have nothing to fuse are left where the compiler sees them."""
    x, weight_1, weight_2, h, pre = ctx.saved_tensors
    dpre, dbias_1 = _gradient(dy, weight_2, pre)
    dbias_1, dbias_2 = dbias_1.to(ctx.bias_dtypes[0]), dy.sum(0, dtype=torch.float32).to(ctx.bias_dtypes[1])
    return dpre @ weight_1, dpre.t() @ x, dbias_1, dy.t() @ h, dbias_2


_mlp.register_autograd(_differentiate, setup_context=_keep)


def mlp(x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
    """Two linear layers with a GELU in its tanh form between them.

    Args:
        x: (…, C) float16, bfloat16 or float32; cast, as the weights are, to autocast's type where it is on.
        weight_1: (F, C), the dtype of ``x``.
        bias_1: (F,), any of these types; added in float32, its gradient is summed in float32.
        weight_2: (O, F), the dtype of ``x``.
        bias_2: (O,), any of these types; its gradient is summed in float32.

    Returns:
        (…, O), the dtype of ``x``, or autocast's.

    Raises:
        ValueError: on a device without Triton, or for shapes and types other than these.

    Source: https://dl.acm.org/doi/10.1145/3315508.3329973
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight_1, weight_2 = x.to(dtype), weight_1.to(dtype), weight_2.to(dtype)
    given = {"x": x, "weight_1": weight_1, "bias_1": bias_1, "weight_2": weight_2, "bias_2": bias_2}
    for name, tensor in given.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}; it must be float16, bfloat16 or float32")
        if name.startswith("weight") and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, x is {x.dtype}; convert one of them")
    wide, out = weight_1.shape[:1], weight_2.shape[:1]
    fitting = (wide + x.shape[-1:], wide, out + wide, out)
    if (weight_1.shape, bias_1.shape, weight_2.shape, bias_2.shape) != fitting:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
        raise ValueError(f"the shapes are {shapes}; they must be (…, C), (F, C), (F,), (O, F) and (O,)")
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values())
    y, _, _ = _mlp(x.reshape(-1, x.shape[-1]), weight_1, bias_1, weight_2, bias_2, keep=keep)
    return y.view(*x.shape[:-1], y.shape[-1])
