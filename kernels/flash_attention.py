"""Causal attention without the (T, T) matrix, on queries, keys and values as GPT-2 packs them.

Written out, attention writes a score for every pair of tokens to memory and reads it back several times; at T = 1024
that is far more than all else a block holds. Here one program takes a block of queries and walks over the keys a block
at a time, with a running maximum and a running sum of each row (the online softmax) and the weighted values in
registers; only the (T, D) result and one number per row, the log-sum-exp, are written. The backward pass computes the
scores again from them, which costs a matrix product and saves the memory.

What is gained over a library's kernel is around it: one linear layer makes queries, keys and values, (B, T, 3·C), and
they are read where they stand. The heads' output is written as (B, T, C), which the next layer takes, and the three
gradients go into one (B, T, 3·C), which the linear layer's backward pass takes: no transposed copies on the way in or
out, and no concatenation of three gradients.

The backward pass is two kernels, both without atomics, so that twice is the same bit by bit:

    queries   each block of queries walks over its keys: dQ, and on the way delta = sum(dO · O) of each row
    keys      each block of keys walks over its queries: dK and dV, which need every row's delta

Together they are seven matrix products per tile. One kernel would do with five, but has to add to dQ from every block
of keys: by atomics, where the order of adding changes with every run, or in turn, where few programs can run at a time.
Nor is it cheap: reading and writing dQ in fp32 saves N / 2 FLOPs per byte, 64 for 128 keys, and in the time in which an
H100's L2 cache moves a byte its tensor cores do about a hundred (reckoned, not measured). Two kernels have block sizes
of their own, and each keeps only its own sums in registers. (delta is usually a third, which reads O and dO once more.)

Causal: tiles beyond the diagonal are never visited, those on it are masked, those below it are not, and as all their
keys exist they are loaded without a bound. The longest rows of tiles start first, so that the end of a launch is not
spent waiting for them. The hardware's exponential is 2^x: scores are scaled by log2(e), and the log-sum-exp is kept to
the base 2. Statistics and sums are fp32. 16-bit types multiply as they are, fp32 as three TF32 products (21 of its 24
bits).

It has no dropout, which would need the same random numbers in three places. The weights of the backward pass carry the
rounding of scores and log-sum-exp, eps · |score|: beside 16-bit inputs nothing, in fp32 with scores of thousands not.

Legend: B micro-batch, T sequence length, H heads, D head size, M queries per block, N keys per block.

Source: Dao, "FlashAttention-2" (2023), https://arxiv.org/abs/2307.08691.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import FLOATS, Configuration, Tuner, on_its_device, require_device

HEAD_SIZES = (32, 64, 128)


def reference(qkv: Tensor) -> Tensor:
    """What `flash_attention` returns, in plain PyTorch."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
    T, D = q.shape[-2:]
    future = torch.ones(T, T, dtype=torch.bool, device=qkv.device).triu(1)
    scores = (q @ k.mT / math.sqrt(D)).masked_fill(future, -torch.inf)  # (B, H, T, T)
    return (scores.softmax(-1) @ v).transpose(1, 2)  # (B, T, H, D)


@triton.jit
def rows_from(ptr, start, row_stride, column_stride, ROWS: tl.constexpr, D: tl.constexpr):
    """Addresses of ROWS rows, (ROWS, D)."""
    rows = (start + tl.arange(0, ROWS)).to(tl.int64)
    return ptr + rows[:, None] * row_stride + tl.arange(0, D)[None, :] * column_stride


@triton.jit
def load_rows(ptr, start, T, row_stride, column_stride, BOUNDED: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """ROWS rows, (ROWS, D); BOUNDED: zeros for those past the end of the sequence."""
    at = rows_from(ptr, start, row_stride, column_stride, ROWS, D)
    if BOUNDED:
        return tl.load(at, mask=(start + tl.arange(0, ROWS) < T)[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def store_rows(ptr, x, start, T, row_stride, ROWS: tl.constexpr, D: tl.constexpr):
    """(ROWS, D) numbers to contiguous rows, but for those past the end of the sequence."""
    at = rows_from(ptr, start, row_stride, 1, ROWS, D)
    tl.store(at, x.to(ptr.dtype.element_ty), mask=(start + tl.arange(0, ROWS) < T)[:, None])


@triton.jit
def flash_forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, b_stride, t_stride, h_stride, d_stride, T, H, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    num_blocks = tl.cdiv(T, M)
    head = (tl.program_id(0) // num_blocks).to(tl.int64)  # of all B · H
    start = (num_blocks - 1 - tl.program_id(0) % num_blocks) * M  # of the block
    b, h = head // H, head % H
    here = b * b_stride + h * h_stride
    queries = start + tl.arange(0, M)
    q = load_rows(q_ptr + here, start, T, t_stride, d_stride, True, M, D)

    scale *= 1.4426950408889634  # log2(e)
    largest = tl.full((M,), -float("inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)  # of 2^(score - largest) so far
    weighted = tl.zeros((M, D), tl.float32)  # and of that times values
    middle = start // N * N
    for DIAGONAL in tl.static_range(2):
        for first in range(middle if DIAGONAL else 0, tl.minimum(start + M, T) if DIAGONAL else middle, N):
            keys = first + tl.arange(0, N)
            k = load_rows(k_ptr + here, first, T, t_stride, d_stride, DIAGONAL, N, D)
            scores = tl.dot(q, k.T, input_precision=PRECISION)  # (M, N)
            if DIAGONAL:
                scores = tl.where(queries[:, None] >= keys[None, :], scores, -float("inf"))
            before = largest
            largest = tl.maximum(before, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - largest[:, None])
            shrink = tl.exp2(before - largest)
            total = total * shrink + tl.sum(weights, 1)
            v = load_rows(v_ptr + here, first, T, t_stride, d_stride, DIAGONAL, N, D)
            weighted = tl.dot(weights.to(v.dtype), v, weighted * shrink[:, None], input_precision=PRECISION)

    store_rows(out_ptr + (b * T * H + h) * D, weighted / total[:, None], start, T, H * D, M, D)
    tl.store(lse_ptr + head * T + queries, largest + tl.log2(total), mask=queries < T)


@triton.jit
def flash_backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr,
    b_stride, t_stride, h_stride, d_stride, db_stride, dt_stride, dh_stride, dd_stride, T, H, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    num_blocks = tl.cdiv(T, M)
    head = (tl.program_id(0) // num_blocks).to(tl.int64)
    start = (num_blocks - 1 - tl.program_id(0) % num_blocks) * M
    b, h = head // H, head % H
    here = b * b_stride + h * h_stride
    queries = start + tl.arange(0, M)
    q = load_rows(q_ptr + here, start, T, t_stride, d_stride, True, M, D)
    dout = load_rows(dout_ptr + b * db_stride + h * dh_stride, start, T, dt_stride, dd_stride, True, M, D)
    out = load_rows(out_ptr + (b * T * H + h) * D, start, T, H * D, 1, True, M, D)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + head * T + queries, delta, mask=queries < T)
    lse = tl.load(lse_ptr + head * T + queries, mask=queries < T, other=0.0)

    exponent_scale = scale * 1.4426950408889634
    dq = tl.zeros((M, D), tl.float32)
    middle = start // N * N
    for DIAGONAL in tl.static_range(2):
        for first in range(middle if DIAGONAL else 0, tl.minimum(start + M, T) if DIAGONAL else middle, N):
            keys = first + tl.arange(0, N)
            k = load_rows(k_ptr + here, first, T, t_stride, d_stride, DIAGONAL, N, D)
            v = load_rows(v_ptr + here, first, T, t_stride, d_stride, DIAGONAL, N, D)
            weights = tl.exp2(tl.dot(q, k.T, input_precision=PRECISION) * exponent_scale - lse[:, None])  # (M, N)
            if DIAGONAL:
                weights = tl.where(queries[:, None] >= keys[None, :], weights, 0.0)
            dscores = weights * (tl.dot(dout, v.T, input_precision=PRECISION) - delta[:, None])
            dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)
    store_rows(dq_ptr + (b * T * 3 * H + h) * D, dq * scale, start, T, 3 * H * D, M, D)


@triton.jit
def flash_backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    b_stride, t_stride, h_stride, d_stride, db_stride, dt_stride, dh_stride, dd_stride, T, H, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    num_blocks = tl.cdiv(T, N)
    head = (tl.program_id(0) // num_blocks).to(tl.int64)
    start = tl.program_id(0) % num_blocks * N
    b, h = head // H, head % H
    here, there = b * b_stride + h * h_stride, b * db_stride + h * dh_stride
    keys = start + tl.arange(0, N)
    k = load_rows(k_ptr + here, start, T, t_stride, d_stride, True, N, D)
    v = load_rows(v_ptr + here, start, T, t_stride, d_stride, True, N, D)

    exponent_scale = scale * 1.4426950408889634
    dk, dv = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    middle = tl.cdiv(start + N, M) * M  # from here on every query sees the whole block
    for BELOW in tl.static_range(2):
        for first in range(middle if BELOW else start // M * M, T if BELOW else tl.minimum(middle, T), M):
            # Rows past the end of the sequence are zeros here: whatever their weights, they add nothing.
            queries = first + tl.arange(0, M)
            q = load_rows(q_ptr + here, first, T, t_stride, d_stride, True, M, D)
            dout = load_rows(dout_ptr + there, first, T, dt_stride, dd_stride, True, M, D)
            lse = tl.load(lse_ptr + head * T + queries, mask=queries < T, other=0.0)
            delta = tl.load(delta_ptr + head * T + queries, mask=queries < T, other=0.0)
            weights = tl.exp2(tl.dot(k, q.T, input_precision=PRECISION) * exponent_scale - lse[None, :])  # (N, M)
            if not BELOW:
                weights = tl.where(queries[None, :] >= keys[:, None], weights, 0.0)
            dv = tl.dot(weights.to(dout.dtype), dout, dv, input_precision=PRECISION)
            dscores = weights * (tl.dot(v, dout.T, input_precision=PRECISION) - delta[None, :])
            dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    mine = (b * T * 3 * H + h) * D
    store_rows(dk_ptr + mine, dk * scale, start, T, 3 * H * D, N, D)
    store_rows(dv_ptr + mine, dv, start, T, 3 * H * D, N, D)


def configurations(*choices: tuple[int, int, int, int, int]) -> tuple[Configuration, ...]:
    """From (M, N, num_warps, num_stages, shared_kib)."""
    return tuple(
        Configuration(blocks={"M": m, "N": n}, num_warps=warps, num_stages=stages, shared_kib=shared)
        for m, n, warps, stages, shared in choices
    )


# (bits of a number, head size) -> choices. Hopper's matrix units take operands from shared memory and leave registers
# for larger tiles, which would spill elsewhere: those with 227 KiB are for it. fp32 has one choice: it is for checking.
FORWARD = {
    (16, 64): configurations((64, 64, 4, 3, 99), (128, 64, 8, 3, 99), (128, 32, 4, 3, 99), (128, 128, 8, 3, 227)),
    (16, 128): configurations((64, 32, 4, 3, 99), (128, 32, 8, 2, 99), (128, 64, 8, 3, 227), (128, 128, 8, 2, 227)),
    (32, 64): configurations((64, 32, 8, 1, 99)),
}
BACKWARD_QUERIES = {
    (16, 64): configurations((64, 32, 4, 3, 99), (128, 64, 8, 2, 99), (64, 64, 4, 3, 227), (128, 128, 8, 2, 227)),
    (16, 128): configurations((64, 32, 4, 2, 99), (64, 64, 4, 2, 227), (128, 64, 8, 2, 227)),
    (32, 64): configurations((32, 32, 8, 1, 99)),
}
BACKWARD_KEYS = {
    (16, 64): configurations((32, 64, 4, 3, 99), (32, 128, 8, 3, 99), (64, 64, 4, 3, 227), (64, 128, 8, 3, 227)),
    (16, 128): configurations((32, 64, 8, 2, 99), (32, 128, 8, 2, 227)),
    (32, 64): configurations((32, 32, 8, 1, 99)),
}
TUNERS = {
    (kernel, key): Tuner(kernel, choices)
    for kernel, table in (
        (flash_forward_kernel, FORWARD),
        (flash_backward_queries_kernel, BACKWARD_QUERIES),
        (flash_backward_keys_kernel, BACKWARD_KEYS),
    )
    for key, choices in table.items()
}


def pick(kernel: triton.JITFunction, qkv: Tensor, run: Callable[[Configuration], None]) -> Configuration:
    """The fastest configuration for these shapes. ``run`` may be repeated, since no kernel reads what it writes."""
    B, T, _, H, D = qkv.shape
    tuner = TUNERS[kernel, (8 * qkv.itemsize, max(D, 64))]
    rounded = [triton.next_power_of_2(n) for n in (B * H, T)]
    return tuner.pick(qkv.device, (*rounded, D, qkv.dtype), lambda: run)


def common(qkv: Tensor) -> dict[str, object]:
    """What all three kernels are told of the packed tensor."""
    _, T, _, H, D = qkv.shape
    precision = "tf32x3" if qkv.dtype == torch.float32 else "tf32"  # 16-bit types heed neither
    return {"T": T, "H": H, "scale": 1.0 / math.sqrt(D), "D": D, "PRECISION": precision}


def launch_forward(qkv: Tensor, out: Tensor, lse: Tensor, *, configuration: Configuration) -> None:
    """One program per block of queries and head.

    Args:
        qkv: (B, T, 3, H, D), any strides.
        out: (B, T, H, D), contiguous; written.
        lse: (B, H, T) float32, contiguous; written: log2 of the row's sum of 2^(score · log2(e)).
        configuration: one of `FORWARD`.
    """
    B, T, _, H, _ = qkv.shape
    q, k, v = qkv.unbind(2)
    flash_forward_kernel[(triton.cdiv(T, configuration.blocks["M"]) * B * H,)](
        q, k, v, out, lse, *q.stride(), **common(qkv), **configuration.keywords
    )


def launch_backward_queries(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, delta: Tensor, dqkv: Tensor, *, configuration: Configuration
) -> None:
    """One program per block of queries and head: writes dQ, and delta for `launch_backward_keys`.

    Args:
        dout: (B, T, H, D), any strides: the gradient of ``out``.
        qkv, out, lse: as after `launch_forward`.
        delta: (B, H, T) float32, contiguous; written.
        dqkv: (B, T, 3, H, D), contiguous; the first third is written.
        configuration: one of `BACKWARD_QUERIES`.
    """
    B, T, _, H, _ = qkv.shape
    q, k, v = qkv.unbind(2)
    flash_backward_queries_kernel[(triton.cdiv(T, configuration.blocks["M"]) * B * H,)](
        q, k, v, out, dout, lse, delta, dqkv, *q.stride(), *dout.stride(), **common(qkv), **configuration.keywords
    )


def launch_backward_keys(
    dout: Tensor, qkv: Tensor, lse: Tensor, delta: Tensor, dqkv: Tensor, *, configuration: Configuration
) -> None:
    """One program per block of keys and head: writes dK and dV, the other two thirds of ``dqkv``."""
    B, T, _, H, _ = qkv.shape
    q, k, v = qkv.unbind(2)
    _, dk, dv = dqkv.unbind(2)
    flash_backward_keys_kernel[(triton.cdiv(T, configuration.blocks["N"]) * B * H,)](
        q, k, v, dout, lse, delta, dk, dv, *q.stride(), *dout.stride(), **common(qkv), **configuration.keywords
    )


@torch.library.custom_op("stepladder::flash_attention", mutates_args=())
@on_its_device
def _forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """(out, lse) as `launch_forward` has them."""
    require_device(qkv)
    out, lse = _outputs(qkv)
    if out.numel():
        run = partial(launch_forward, qkv, out, lse)
        run(configuration=pick(flash_forward_kernel, qkv, lambda c: run(configuration=c)))
    return out, lse


@_forward.register_fake
def _outputs(qkv: Tensor) -> tuple[Tensor, Tensor]:
    B, T, _, H, D = qkv.shape
    return qkv.new_empty(B, T, H, D), qkv.new_empty(B, H, T, dtype=torch.float32)


@torch.library.custom_op("stepladder::flash_attention_backward", mutates_args=())
@on_its_device
def _backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """The gradient of the packed tensor, contiguous."""
    dqkv, delta = _gradient(dout, qkv, out, lse), torch.empty_like(lse)
    if out.numel():
        queries = partial(launch_backward_queries, dout, qkv, out, lse, delta, dqkv)
        queries(configuration=pick(flash_backward_queries_kernel, qkv, lambda c: queries(configuration=c)))
        keys = partial(launch_backward_keys, dout, qkv, lse, delta, dqkv)
        keys(configuration=pick(flash_backward_keys_kernel, qkv, lambda c: keys(configuration=c)))
    return dqkv


@_backward.register_fake
def _gradient(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _keep(ctx, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx, dout: Tensor, _: Tensor | None) -> Tensor:
    return _backward(dout, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_keep)


def flash_attention(qkv: Tensor) -> Tensor:
    """Causal attention over packed queries, keys and values, without dropout.

    Args:
        qkv: (B, T, 3, H, D) float16, bfloat16 or float32, any strides: a view of what GPT-2's ``c_attn`` returns. D is
            32, 64 or, for 16-bit types, 128. Cast as a matrix product's operand under autocast.

    Returns:
        (B, T, H, D), contiguous: the (B, T, C) that ``c_proj`` takes, the heads side by side.

    Raises:
        ValueError: on a device without Triton, or for shapes and types other than these.

    Source: https://arxiv.org/abs/2307.08691
    """
    if torch.is_autocast_enabled(qkv.device.type):
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
    shape = tuple(qkv.shape)
    if len(shape) != 5 or shape[2] != 3:
        raise ValueError(f"qkv is {shape}; it must be (B, T, 3, H, D), a view of packed queries, keys and values")
    if qkv.dtype not in FLOATS:
        raise ValueError(f"qkv is {qkv.dtype}; it must be float16, bfloat16 or float32")
    sizes = HEAD_SIZES if qkv.itemsize == 2 else HEAD_SIZES[:-1]
    if shape[-1] not in sizes:
        raise ValueError(f"the head size is {shape[-1]}; this kernel has {', '.join(map(str, sizes))} for {qkv.dtype}")
    return _forward(qkv)[0]
