"""AdamW over flat buffers, the gradient clipped on the way.

An optimizer step does little arithmetic and moves much memory, so its time is the bytes it moves. PyTorch's fused AdamW
with clipping goes over the numbers of a model three times: the norm reads the gradients (4 bytes a number), the clip
reads and writes them (8), the update reads parameter, gradient and two moments and writes all but the gradient (28).
The clip is one factor for all numbers, so here the update applies it as it reads them: 32 bytes a number instead of
40, for GPT-2 124M a gigabyte less in every step, and no tensor is walked through twice.

Parameters, moments and the rounded copy of the parameters (the *shadow*, for models that compute in bfloat16) are one
buffer each. Gradients are not: autograd hands a fresh gradient over for nothing, but adding it to a buffer reads both
and writes one of them, and that buffer must have been cleared: 16 bytes a number, twice what clipping in passing saves.
So gradients stay where they were made, and the kernels are given their addresses. A table, made once, cuts all tensors
into chunks and says where each chunk lies; one program takes one chunk, or a part of it, so a bias of 768 numbers and
an embedding table of 38 million share a launch.

The norm comes from two stages in a fixed order: each program sums the squares of its chunks, then the programs' norms
are combined. It has one configuration and no atomics: a run does not depend on which configuration was fastest.
Statistics are fp32. The learning rate and all that follows from the step's number are plain arguments, and the norm
never leaves the device: nothing is compiled again when a schedule moves them, and the host never waits.

Legend: n numbers in a flat buffer, K tensors, N chunks.

Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), https://arxiv.org/abs/1711.05101; norm
clipping: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013).
"""

from collections.abc import Sequence
from functools import partial
from math import sqrt

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import Configuration, Tuner, on_its_device, require_device

CHUNK = 8192  # numbers; with GPT-2 124M 15 thousand chunks
ALIGNMENT = 32  # numbers: where a tensor may begin in a flat buffer, 128 bytes of fp32
WIDE = 16  # bytes of the widest load, and numbers that fill it in any type
MOST_PROGRAMS = 1024  # that share the sum of squares: eight for each multiprocessor there is
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def reference(
    parameter: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, gradient: Tensor, norm: Tensor | None, *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, max_norm: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `adamw_` makes of one tensor's (parameter, exp_avg, exp_avg_sq), in plain PyTorch."""
    if norm is not None:
        gradient = gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    exp_avg = exp_avg.lerp(gradient, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient.square()
    root = exp_avg_sq.sqrt() / sqrt(1 - beta2**step) + eps
    parameter = parameter * (1 - lr * weight_decay) - lr / (1 - beta1**step) * exp_avg / root
    return parameter, exp_avg, exp_avg_sq


@triton.jit
def find(chunks_ptr, addresses_ptr, chunk, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A chunk's (address in its gradient, place in the flat buffers, numbers)."""
    row_ptr = chunks_ptr + chunk * 4
    address = tl.load(addresses_ptr + tl.load(row_ptr))
    start, place, count = tl.load(row_ptr + 1), tl.load(row_ptr + 2), tl.load(row_ptr + 3)
    gradient_ptr = address.to(tl.pointer_type(TYPE)) + start
    if ALIGNED:  # then whole groups of numbers are inside or outside, and the loads can be wide
        gradient_ptr = tl.multiple_of(gradient_ptr, 16)
        count = tl.multiple_of(count, 16)
    return gradient_ptr, tl.multiple_of(place, 16), count


@triton.jit
def norms_kernel(
    chunks_ptr, addresses_ptr, norms_ptr, num_chunks, TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    columns = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    chunk = tl.program_id(0)
    while chunk < num_chunks:
        gradient_ptr, _, count = find(chunks_ptr, addresses_ptr, chunk, TYPE, ALIGNED)
        g = tl.load(gradient_ptr + columns, mask=columns < count, other=0.0).to(tl.float32)
        squares += g * g
        chunk += tl.num_programs(0)
    tl.store(norms_ptr + tl.program_id(0), tl.sqrt_rn(tl.sum(squares, 0)))


@triton.jit
def adamw_kernel(
    master_ptr, exp_avg_ptr, exp_avg_sq_ptr, shadow_ptr, chunks_ptr, addresses_ptr, norm_ptr, max_norm,
    step_size, decay, weight1, beta2, weight2, inverse_root, eps,
    TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    gradient_ptr, place, count = find(chunks_ptr, addresses_ptr, tl.program_id(0), TYPE, ALIGNED)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < count
    at = place + columns
    g = tl.load(gradient_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    p = tl.load(master_ptr + at, mask=inside, other=0.0)
    m = tl.load(exp_avg_ptr + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq_ptr + at, mask=inside, other=0.0)
    if norm_ptr is not None:
        factor = max_norm / (tl.load(norm_ptr) + 1e-6)
        g *= tl.where(factor > 1.0, 1.0, factor)  # not a minimum, which would make 1 of NaN
    m += weight1 * (g - m)
    v = beta2 * v + weight2 * g * g
    p = p * decay - step_size * m / (tl.sqrt(v) * inverse_root + eps)
    tl.store(master_ptr + at, p, mask=inside)
    tl.store(exp_avg_ptr + at, m, mask=inside)
    tl.store(exp_avg_sq_ptr + at, v, mask=inside)
    if shadow_ptr is not None:
        tl.store(shadow_ptr + at, p.to(shadow_ptr.dtype.element_ty), mask=inside)


NORMS = Configuration(blocks={"BLOCK": CHUNK}, num_warps=8)
# Each number is worked on by itself, so all of these give the same bits.
CONFIGURATIONS = (
    Configuration(blocks={"BLOCK": 4096}, num_warps=8),
    Configuration(blocks={"BLOCK": 2048}, num_warps=4),
    Configuration(blocks={"BLOCK": 1024}, num_warps=4),
)
TUNER = Tuner(adamw_kernel, CONFIGURATIONS)
TRIAL_CHUNKS = 1024  # 134 MB of gradient, parameter and moments


def chunk_table(sizes: Sequence[int], places: Sequence[int], device: torch.device | str) -> Tensor:
    """Where every chunk of some tensors lies.

    Args:
        sizes: numbers in each tensor.
        places: where each begins in the flat buffers, multiples of `ALIGNMENT`.
        device: of the tensors.

    Returns:
        (N, 4) int64 on the device: which tensor, start in it, place in the flat buffers, numbers (at most `CHUNK`).
    """
    rows = [
        (i, start, place + start, min(CHUNK, size - start))
        for i, (size, place) in enumerate(zip(sizes, places, strict=True))
        for start in range(0, size, CHUNK)
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4).to(device)


def _gradient_arguments(gradients: Sequence[Tensor]) -> tuple[Tensor, dict]:
    """The gradients' addresses on the device, sent without waiting, and the constants that describe them."""
    device = gradients[0].device
    addresses = torch.tensor([g.data_ptr() for g in gradients], dtype=torch.int64, pin_memory=device.type == "cuda")
    aligned = all(g.data_ptr() % WIDE == 0 and g.numel() % WIDE == 0 for g in gradients)
    constants = {"TYPE": TYPES[gradients[0].dtype], "ALIGNED": aligned}
    return addresses.to(device, non_blocking=True), constants


def launch_norms(gradients: Sequence[Tensor], chunks: Tensor, norms: Tensor, *, configuration: Configuration) -> None:
    """Runs the first stage of the norm: as many programs as ``norms`` has places, each with every so manieth chunk."""
    addresses, constants = _gradient_arguments(gradients)
    norms_kernel[(len(norms),)](chunks, addresses, norms, len(chunks), **constants, **configuration.keywords)


def launch(
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, shadow: Tensor | None, gradients: Sequence[Tensor],
    chunks: Tensor, norm: Tensor | None, *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, max_norm: float,
    configuration: Configuration,
) -> None:  # fmt: skip
    """Runs the update; arguments as `adamw_` has them, gradients contiguous."""
    addresses, constants = _gradient_arguments(gradients)
    adamw_kernel[(len(chunks), CHUNK // configuration.blocks["BLOCK"])](
        master, exp_avg, exp_avg_sq, shadow, chunks, addresses, norm, float(max_norm),
        lr / (1 - beta1**step), 1.0 - lr * weight_decay,
        1.0 - beta1, beta2, 1.0 - beta2, 1.0 / sqrt(1 - beta2**step), eps,
        **constants, **configuration.keywords,
    )  # fmt: skip


def _contiguous(gradients: Sequence[Tensor], chunks: Tensor) -> list[Tensor]:
    """The gradients, checked; raises ValueError."""
    kinds = {(g.dtype, g.device) for g in gradients}
    if len(kinds) != 1 or gradients[0].dtype not in TYPES or gradients[0].device != chunks.device:
        said = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
        raise ValueError(f"gradients are {said}; they must be 16- or 32-bit floats of one type, all on {chunks.device}")
    if chunks.dtype != torch.int64 or chunks.dim() != 2 or chunks.shape[1] != 4 or not chunks.is_contiguous():
        raise ValueError(f"chunks are {chunks.dtype} {tuple(chunks.shape)}; take rows of what chunk_table returns")
    require_device(chunks)
    return [g.contiguous() for g in gradients]


@torch.library.custom_op("stepladder::gradient_norms", mutates_args=())
@on_its_device
def gradient_norms(gradients: Sequence[Tensor], chunks: Tensor) -> Tensor:
    """Norms of parts of the gradients, in an order that never changes.

    Args:
        gradients: K tensors, float32, bfloat16 or float16, any shapes.
        chunks: (N, 4) int64, from `chunk_table` with these tensors' sizes.

    Returns:
        (at most `MOST_PROGRAMS`,) float32, whose norm is that of all gradients together.

    Raises:
        ValueError: on a device without Triton, or for types other than these.
    """
    gradients = _contiguous(gradients, chunks)
    norms = torch.empty(min(MOST_PROGRAMS, len(chunks)), dtype=torch.float32, device=chunks.device)
    if len(norms):
        launch_norms(gradients, chunks, norms, configuration=NORMS)
    return norms


@gradient_norms.register_fake
def _(gradients: Sequence[Tensor], chunks: Tensor) -> Tensor:
    return chunks.new_empty(min(MOST_PROGRAMS, len(chunks)), dtype=torch.float32)


def gradient_norm(gradients: Sequence[Tensor], chunks: Tensor) -> Tensor:
    """The norm of all gradients together: float32 without a shape, on the device; arguments as `gradient_norms`."""
    return torch.linalg.vector_norm(gradient_norms(gradients, chunks))


@torch.library.custom_op("stepladder::adamw_", mutates_args=("master", "exp_avg", "exp_avg_sq", "shadow"))
@on_its_device
def adamw_(
    master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, shadow: Tensor | None, gradients: Sequence[Tensor],
    chunks: Tensor, norm: Tensor | None, *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, max_norm: float = 1.0,
) -> None:  # fmt: skip
    """One step of AdamW on the chunks given; numbers of the buffers outside them stay.

    Args:
        master: (n,) float32, the parameters; changed.
        exp_avg: (n,) float32, the first moment; changed.
        exp_avg_sq: (n,) float32, the second moment; changed.
        shadow: (n,) bfloat16, becomes the rounded parameters; None for none.
        gradients: K tensors, float32, bfloat16 or float16; left as they are, unclipped.
        chunks: (N, 4) int64, rows of what `chunk_table` returns for these tensors and buffers.
        norm: of all gradients together, float32 without a shape; None does not clip.
        lr: learning rate.
        beta1, beta2: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled: times ``lr``, taken off the parameter itself.
        step: this one's number, from 1.
        max_norm: the gradients are scaled by ``max_norm / (norm + 1e-6)`` where that is below 1.

    Raises:
        ValueError: on a device without Triton, or for shapes and types other than these.

    Source: https://arxiv.org/abs/1711.05101
    """
    flat = {"master": master, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, tensor in flat.items() if shadow is None else {**flat, "shadow": shadow}.items():
        dtype = torch.bfloat16 if name == "shadow" else torch.float32
        if tensor.dtype != dtype or tensor.shape != (master.numel(),) or not tensor.is_contiguous():
            said = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{name} is {said}; it must be {dtype}, contiguous, of shape ({master.numel()},)")
    if step < 1:
        raise ValueError(f"step is {step}; the first one is 1")
    gradients = _contiguous(gradients, chunks)
    if len(chunks) == 0:
        return
    run = partial(
        launch, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, step=step, max_norm=max_norm
    )

    def trial():
        n = TRIAL_CHUNKS * CHUNK
        buffers = [torch.zeros(n, device=master.device) for _ in range(3)]
        copy = None if shadow is None else shadow.new_zeros(n)
        zeros, table = gradients[0].new_zeros(n), chunk_table([n], [0], master.device)
        return lambda c: run(*buffers, copy, [zeros], table, norm, configuration=c)

    configuration = TUNER.pick(master.device, (gradients[0].dtype, shadow is not None, norm is not None), trial)
    run(master, exp_avg, exp_avg_sq, shadow, gradients, chunks, norm, configuration=configuration)


@adamw_.register_fake
def _(*_: object, **__: object) -> None:
    return None
