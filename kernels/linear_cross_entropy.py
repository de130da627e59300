"""The output head and its cross-entropy in one function, which never holds more logits than it is told to.

The head multiplies (N, C) hidden states with the (P, C) embedding table, and only the loss ever looks at the (N, P)
product. Left to autograd, the logits and their gradient live from the end of the forward pass into the backward pass:
with N = 8 · 1024 and GPT-2's vocabulary that is 0.8 GB each in bf16 and twice that in fp32, more than the rest of the
model on an 8 GB card.

The loss is one number, so its gradient is known up to a factor as soon as the logits are, and there is no need to wait
for the backward pass. For one chunk of rows at a time:

    logits    = x[chunk] @ weightᵀ                     the vendor's matrix product, into a buffer every chunk reuses
    logits   <- softmax(logits) - one-hot, row losses  `cross_entropy_`, in place
    dx[chunk] = logits @ weight
    dweight  += logitsᵀ @ x[chunk]                     summed in fp32

What is kept for the backward pass is dx and dweight, (N, C) and (P, C), and all it does is multiply them by the loss's
own gradient, so no pass over anything as large as the logits is spent on that factor.

One chunk of all rows takes the same products as the plain way and saves the second copy of the logits and its passes.
Small chunks are a memory win and a speed loss: each one reads the whole table and adds to the whole of its gradient,
and narrow products fill a large card badly. They are for the card on which the next larger micro-batch would not fit.

The first product can run in fp8 (`kernels.fp8`). Both factors are then cast before the op, where a compiler can fuse
the casts with what wrote them; the gradients' products are the same as ever.

Legend: N rows (tokens), C channels, V vocab_size, P rows of the table (P >= V: rows past V are padding and take no
part).

Source: Wijmans et al., "Cut your losses in large-vocabulary language models" (2024), https://arxiv.org/abs/2411.09009;
gradients in the forward pass, by chunks: Hsu et al., "Liger kernel" (2024), https://arxiv.org/abs/2410.10989.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cross_entropy, fp8
from kernels.cross_entropy import IGNORED, cross_entropy_

CHUNK_SHARE = 1 / 32  # of the device's memory, for one chunk's logits
ASSUMED_MEMORY = 2**31  # bytes, where the device is no GPU
ALIGNMENT = 64  # columns: rows of the buffer begin at wide loads' addresses, also for an odd vocabulary


def reference(x: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, z_loss: float = 0.0) -> Tensor:
    """What `linear_cross_entropy` computes, in plain PyTorch."""
    logits = F.linear(x, weight).flatten(0, -2)  # (N, P)
    losses = cross_entropy.reference(logits, targets.flatten(), vocab_size=vocab_size, z_loss=z_loss)
    return losses.sum() / (targets != IGNORED).sum()


def chunk_rows_for(device: torch.device, num_columns: int, itemsize: int) -> int:
    """Rows per chunk: the largest power of two, at least 128, whose logits take at most 1/32 of the device's memory."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else ASSUMED_MEMORY
    rows = max(128, int(memory * CHUNK_SHARE) // (num_columns * itemsize))
    return 1 << (rows.bit_length() - 1)


@torch.library.custom_op("stepladder::linear_cross_entropy", mutates_args=())
def _loss_and_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, quantised: list[Tensor], *,
    vocab_size: int, z_loss: float, chunk_rows: int | None, gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(sum of the row losses, its gradient for x, its gradient for weight); empty gradients if there are to be none.

    ``quantised`` is empty, or x, its scales, the weight and its scales in fp8, for the logits.
    """
    N, P = len(x), len(weight)
    chunk_rows = min(max(N, 1), chunk_rows or chunk_rows_for(x.device, P, x.itemsize))
    table = weight.to(x.dtype)
    buffer = x.new_empty(0 if quantised else chunk_rows, -(-P // ALIGNMENT) * ALIGNMENT)[:, :P]
    losses = torch.empty(N, dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x) if gradient else x.new_empty(0)
    dweight = torch.zeros_like(weight, dtype=torch.float32) if gradient else weight.new_empty(0)
    for start in range(0, N, chunk_rows):
        chunk = slice(start, start + chunk_rows)
        if quantised:
            rows, scales, columns, column_scales = quantised
            scales = scales[chunk] if len(scales) == N else scales  # one for all
            logits = fp8.product(rows[chunk], scales, columns, column_scales, None, x.dtype)
        else:
            logits = torch.mm(x[chunk], table.t(), out=buffer[: len(x[chunk])])
        losses[chunk] = cross_entropy_(logits, targets[chunk], vocab_size=vocab_size, z_loss=z_loss, gradient=gradient)
        if gradient:
            torch.mm(logits, table, out=dx[chunk])
            dweight += logits.t() @ x[chunk]
        del logits  # before the next chunk's are made
    return losses.sum(), dx, dweight.to(weight.dtype)


@_loss_and_gradients.register_fake
def _(
    x: Tensor, weight: Tensor, targets: Tensor, quantised: list[Tensor], *,
    vocab_size: int, z_loss: float, chunk_rows: int | None, gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    total = x.new_empty((), dtype=torch.float32)
    return total, *((torch.empty_like(t) if gradient else t.new_empty(0)) for t in (x, weight))


def _keep(ctx, inputs: tuple, keyword_only_inputs: dict, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.num_quantised = len(inputs[3])


def _scale(ctx, grad: Tensor, *_: object) -> tuple[Tensor, Tensor, None, list[None]]:
    dx, dweight = ctx.saved_tensors
    return dx * grad, dweight * grad, None, [None] * ctx.num_quantised


_loss_and_gradients.register_autograd(_scale, setup_context=_keep)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *,
    vocab_size: int, z_loss: float = 0.0, chunk_rows: int | None = None, scales: fp8.Scales | None = None,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of ``x @ weightᵀ``, the logits of a chunk of rows existing at a time.

    Args:
        x: (…, C) float32 or bfloat16; cast as a linear layer's input under autocast.
        weight: (P, C), P >= ``vocab_size``; used in x's type, its gradient is summed in float32 and has its own.
        targets: (…) int64 below ``vocab_size``; -100 marks a row that does not count.
        vocab_size: V; rows of the table past it take no part.
        z_loss: adds ``z_loss`` · logsumexp² to each row's loss.
        chunk_rows: rows whose logits exist at a time; None: as many as suit the device's memory.
        scales: for logits multiplied in fp8, from a bfloat16 ``x`` and with C and P multiples of 16; None: in x's type.

    Returns:
        float32 without a shape, nats; NaN if no row counts, or where a target is no token.

    Raises:
        ValueError: on a device without Triton, or for shapes and types other than these.

    Source: https://arxiv.org/abs/2410.10989
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"x is {x.dtype}; it must be float32 or bfloat16 (sums over all rows leave float16's range)")
    if x.shape[:-1] != targets.shape or x.shape[-1] != weight.shape[-1]:
        shapes = f"x is {tuple(x.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"{shapes}; they must be (…, C), (P, C) and (…)")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1, or None to suit the device")
    gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    x, quantised = x.flatten(0, -2), []
    if scales is not None:
        fp8.check(x, weight)
        with torch.no_grad():
            quantised = [*fp8.quantise(x, scales.activation), *fp8.quantise(weight, scales.weight)]
    total, _, _ = _loss_and_gradients(
        x, weight, targets.flatten(), quantised,
        vocab_size=vocab_size, z_loss=z_loss, chunk_rows=chunk_rows, gradient=gradient,
    )  # fmt: skip
    return total / (targets != IGNORED).sum()
