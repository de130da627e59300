"""Cross-entropy in one pass over the logits, which become their own gradient.

The logits are the largest tensor of a small GPT-2: 64 · 1024 tokens times 50304 columns are 6.6 GB in bf16. Written
out, the loss turns them into fp32, reads them for the maximum, for the sum and for the target, writes probabilities
and, in the backward pass, reads those to write the gradient. A compiler fuses most of that, but it still reads the
logits again in the backward pass and writes the gradient to a tensor of its own.

All the gradient needs is known once the row's sum is: d loss / d logit = softmax − one-hot. So one program takes one
row and goes over it twice: forwards for a running maximum and a running sum (the online softmax), then backwards, from
the end that was read last, writing the gradient over the logits. A row of 50304 bf16 is 98 KB, so the second reading
can come from the cache: then memory sees one read and one write of the logits, the least there can be, and no second
tensor of their size ever exists. (A program that holds the whole row in registers would not need the second reading;
compiled for any card, it spills.)

The price: the logits are gone. Statistics are fp32 whatever the logits are, and nothing depends on the order in which
programs run.

Legend: N rows (tokens), V vocab_size, P columns (P >= V: columns past V are padding and take no part).

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), https://arxiv.org/abs/1805.02867;
z-loss: Chowdhery et al., "PaLM" (2022), section 5.
"""

from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import FLOATS, Configuration, Tuner, on_its_device, require_device

IGNORED = -100  # the target of a row that does not count


def reference(logits: Tensor, targets: Tensor, *, vocab_size: int, z_loss: float = 0.0) -> Tensor:
    """What `cross_entropy_` returns, in plain PyTorch; its gradient is what is left in the logits."""
    logits = logits[:, :vocab_size]
    if logits.dtype != torch.float64:
        logits = logits.float()
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")  # (N,)
    return losses + torch.where(targets == IGNORED, 0.0, z_loss * logits.logsumexp(-1).square())


@triton.jit
def load_columns(
    logits_ptr, start, column_stride, V: tl.constexpr, P: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr
):
    """(addresses, columns, logits) of a block; WHOLE: of tokens alone, else logits past V are -inf."""
    columns = start + tl.arange(0, BLOCK)
    at = logits_ptr + columns * column_stride
    if WHOLE:
        return at, columns, tl.load(at).to(tl.float32)
    x = tl.load(at, mask=columns < P, other=-float("inf")).to(tl.float32)
    return at, columns, tl.where(columns < V, x, -float("inf"))


@triton.jit
def cross_entropy_kernel(
    logits_ptr, targets_ptr, losses_ptr,
    row_stride, column_stride, z_loss,
    V: tl.constexpr, P: tl.constexpr, IGNORED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # 65536 rows of 50304 are beyond 32 bits
    logits_ptr += row * row_stride
    target = tl.load(targets_ptr + row)
    counts = target != IGNORED
    is_token = (target >= 0) & (target < V)
    # A target that is neither a token nor ignored makes the loss NaN: loud, and no address outside the row is read.
    logit = tl.load(logits_ptr + target * column_stride, mask=is_token, other=float("nan")).to(tl.float32)

    # Blocks of tokens alone go without a mask: V is odd, and under a mask that ends there each number is a load.
    TOKENS: tl.constexpr = V // BLOCK * BLOCK
    largest = -float("inf")
    total = 0.0  # of exp(logit - largest) so far
    for LAST in tl.static_range(2):
        for start in range(TOKENS if LAST else 0, V if LAST else TOKENS, BLOCK):
            _, _, x = load_columns(logits_ptr, start, column_stride, V, P, LAST == 0, BLOCK)
            before = largest
            largest = tl.maximum(before, tl.max(x, 0))
            shift = tl.where(largest == -float("inf"), 0.0, largest)  # only -inf so far: -inf - -inf would be NaN
            total = total * tl.exp(before - shift) + tl.sum(tl.exp(x - shift), 0)
    logsumexp = largest + tl.log(total)
    loss = (largest - logit) + tl.log(total)  # in this order: where the logits are huge, logsumexp has lost the sum
    loss += z_loss * logsumexp * logsumexp
    tl.store(losses_ptr + row, tl.where(counts, loss, 0.0))

    if GRADIENT:
        inverse = 1.0 / total
        z_slope = 2.0 * z_loss * logsumexp
        for WHOLE in tl.static_range(2):
            for done in range(0, TOKENS if WHOLE else P - TOKENS, BLOCK):
                start = (TOKENS - BLOCK if WHOLE else (P - 1) // BLOCK * BLOCK) - done
                at, columns, x = load_columns(logits_ptr, start, column_stride, V, P, WHOLE == 1, BLOCK)
                probability = tl.exp(x - largest) * inverse
                gradient = probability - tl.where(columns == target, 1.0, 0.0) + z_slope * probability
                gradient = tl.where(counts, gradient, 0.0).to(logits_ptr.dtype.element_ty)
                if WHOLE:
                    tl.store(at, gradient)
                else:
                    tl.store(at, gradient, mask=columns < P)


# Few warps keep more rows in flight, many make fewer turns of the loop; which wins depends on the card's cache.
CONFIGURATIONS = (
    Configuration(blocks={"BLOCK": 4096}, num_warps=8),
    Configuration(blocks={"BLOCK": 8192}, num_warps=16),
    Configuration(blocks={"BLOCK": 16384}, num_warps=32),
)
TUNER = Tuner(cross_entropy_kernel, CONFIGURATIONS)
ALIGNMENT = 16  # columns: rows that begin at multiples of it are read in the widest loads
TRIAL_ROWS = 2048  # several for every multiprocessor there is, and 200 MB of GPT-2's logits


def launch(
    logits: Tensor, targets: Tensor, losses: Tensor, *,
    vocab_size: int, z_loss: float, gradient: bool, configuration: Configuration,
) -> None:  # fmt: skip
    """Runs the kernel: one program per row.

    Args:
        logits: (N, P), any strides; overwritten with the gradient if there is to be one.
        targets: (N,) int64, contiguous.
        losses: (N,) float32, contiguous; written.
        vocab_size, z_loss, gradient: as `cross_entropy_` has them.
        configuration: one of `CONFIGURATIONS`.
    """
    cross_entropy_kernel[(len(logits),)](
        logits, targets, losses,
        logits.stride(0), logits.stride(1), z_loss,
        V=vocab_size, P=logits.shape[1], IGNORED=IGNORED, GRADIENT=gradient, **configuration.keywords,
    )  # fmt: skip


# An opaque op, not a `triton_op`: while the interpreter runs the kernel only this kind compiles, and tests do both.
# Its price is 7 to 15 µs a call on the host. The compiler could fuse nothing into the kernel anyway.
@torch.library.custom_op("stepladder::cross_entropy_", mutates_args=("logits",))
@on_its_device
def cross_entropy_(
    logits: Tensor, targets: Tensor, *, vocab_size: int, z_loss: float = 0.0, gradient: bool = True
) -> Tensor:
    """Each row's cross-entropy; the logits become the gradient of the sum of these losses.

    Args:
        logits: (N, P) float16, bfloat16 or float32, any strides, a row within 2³¹ numbers; overwritten unless
            ``gradient`` is off.
        targets: (N,) int64 below ``vocab_size``; -100 marks a row that does not count: its loss and its gradient are 0.
        vocab_size: V <= P; columns past it take no part, their gradient is 0.
        z_loss: adds ``z_loss`` · logsumexp² to each loss, which keeps the logits from drifting.
        gradient: off leaves the logits alone.

    Returns:
        (N,) float32, nats. A target that is no token makes its row's loss NaN.

    Raises:
        ValueError: on a device without Triton, or for shapes and types other than these.

    Source: https://arxiv.org/abs/1805.02867
    """
    shape = tuple(logits.shape)
    if len(shape) != 2 or logits.dtype not in FLOATS:
        raise ValueError(f"logits are {logits.dtype} {shape}; they must be 16- or 32-bit floats of shape (N, P)")
    if targets.shape != shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype} {tuple(targets.shape)}; they must be int64 of shape {shape[:1]}")
    if not 0 < vocab_size <= shape[1]:
        raise ValueError(f"vocab_size is {vocab_size}; it must lie between 1 and the number of columns, {shape[1]}")
    if (shape[1] - 1) * logits.stride(1) >= 2**31:
        apart = f"{logits.stride(1)} numbers apart, too far for a row of {shape[1]}"
        raise ValueError(f"logits' columns are {apart}; copy them")
    require_device(logits)
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits) == 0:
        return losses

    run = partial(launch, vocab_size=vocab_size, z_loss=z_loss, gradient=gradient)
    wide = logits.stride(1) == 1 and logits.stride(0) % ALIGNMENT == 0  # rows that allow wide loads

    def trial():
        columns = -(-shape[1] // ALIGNMENT) * ALIGNMENT if wide else shape[1]
        scratch = logits.new_zeros(TRIAL_ROWS, columns)[:, : shape[1]]
        tokens, out = targets.new_zeros(TRIAL_ROWS), losses.new_empty(TRIAL_ROWS)
        return lambda c: run(scratch, tokens, out, configuration=c)

    configuration = TUNER.pick(logits.device, (triton.next_power_of_2(shape[1]), logits.dtype, gradient, wide), trial)
    run(logits, targets.contiguous(), losses, configuration=configuration)
    return losses


@cross_entropy_.register_fake
def _(logits: Tensor, targets: Tensor, *, vocab_size: int, z_loss: float = 0.0, gradient: bool = True) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)
