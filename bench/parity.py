"""Does a setting still train the same model? Its first steps against the same steps in true fp32.

Three things are compared, from the same weights on the same real batches:

    loss      of every step: notices a wrong forward pass at once, and a wrong update from the second step on.
    gradient  of every parameter in the first step: notices one wrong tensor, however small its part in the whole.
    norm      of the whole gradient in every step: notices a wrong scale, which AdamW's loss curve hides.

Gradients are compared by sketch, so that a reference stays small for any model: every entry gets a sign by a hash
of its index and is added into one of 64 buckets. The sketch is linear, and the expected squared length of a difference of
sketches is that of the difference itself (Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from model import GPT2
from optim_ladder import Drift, OptimizerConfig, TrainStep
from results.schema import Parity

NUM_STEPS = 10
BUCKETS = 64

# A sixth of the usual rate: without a warm-up, the usual one meets a batch here and there whose gradient is thirty times the others',
# and there any rounding is magnified (LOG.md, 2026-11-21). What is compared is arithmetic, not luck.
OPTIMIZER = OptimizerConfig(learning_rate=1e-4)

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The first steps of one setting: loss and gradient norm per step, a sketch per parameter of the first gradient.

    ``step_ms`` is wall time per step, sketching left out; the first one holds the compilation.
    """

    loss: list[float]
    norm: list[float]
    sketches: dict[str, list[float]]
    step_ms: list[float]

    def to_dict(self) -> dict:
        return asdict(self)


def sketch(gradient: Tensor) -> Tensor:
    """(BUCKETS,) float64 signed sums of a tensor's entries, the same on every device.

    Source of the hash: Mueller, "hash-prospector" (https://github.com/skeeto/hash-prospector), 32 bits.
    """
    flat = gradient.detach().float().flatten()
    index = torch.arange(flat.numel(), device=flat.device)
    for shift, factor in ((16, 0x45D9F3B), (16, 0x45D9F3B), (16, 1)):  # every bit of the index must reach the sign's
        index = ((index ^ (index >> shift)) * factor) & 0xFFFFFFFF
    sign = 1.0 - 2.0 * (index & 1)
    padding = -flat.numel() % BUCKETS
    return torch.nn.functional.pad(flat * sign, (0, padding)).view(-1, BUCKETS).sum(0).cpu().double()


def gradient_sketches(model: GPT2) -> dict[str, list[float]]:
    """Sketch of every parameter's gradient; vocabulary padding is left out, its gradient is zero by construction."""
    sketches = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise RuntimeError(f"parameter {name} got no gradient")
        gradient = parameter.grad
        if name == "wte.weight":
            gradient = gradient[: model.config.vocab_size]
        sketches[name] = sketch(gradient).tolist()
    return sketches


def trajectory(step: TrainStep, batches: Sequence[Batches]) -> Trajectory:
    """Runs the setting's first steps.

    Args:
        step: freshly built.
        batches: per step, its micro-batches on the device.
    """
    result = Trajectory(loss=[], norm=[], sketches={}, step_ms=[])
    for i, micro_batches in enumerate(batches):
        start = time.perf_counter()
        result.loss.append(_mean_over_processes(step.backward(micro_batches)))
        elapsed = time.perf_counter() - start
        if i == 0:
            result.sketches.update(gradient_sketches(step.model))
        start = time.perf_counter()
        result.norm.append(float(step.update()))
        result.step_ms.append((elapsed + time.perf_counter() - start) * 1e3)
    return result


def _mean_over_processes(loss: Tensor) -> float:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(loss)
        loss = loss / torch.distributed.get_world_size()
    return float(loss)


def compare(measured: Trajectory, reference: Trajectory, bound: Drift) -> Parity:
    """Holds a trajectory against the fp32 one.

    Args:
        measured: of the setting.
        reference: of true fp32 on the same batches.
        bound: of the setting's rungs.
    """
    loss_drift = _largest(abs(a - b) for a, b in zip(measured.loss, reference.loss, strict=True))
    norm_drift = _largest(_relative(abs(a - b), b) for a, b in zip(measured.norm, reference.norm, strict=True))
    gradient_drift, parameter = gradient_error(measured.sketches, reference.sketches)
    broken = [
        f"{what} differs from fp32 by {drift:.2g}, above {limit:.2g}"
        for what, drift, limit in (
            ("loss", loss_drift, bound.loss),
            (f"gradient of {parameter}", gradient_drift, bound.gradient),
            ("gradient norm", norm_drift, bound.norm),
        )
        if not drift <= limit  # also true for NaN
    ]
    finite = [x if math.isfinite(x) else 1e30 for x in (loss_drift, gradient_drift, norm_drift)]  # JSON has no NaN
    return Parity(
        steps=len(measured.loss),
        loss=[x if math.isfinite(x) else 1e30 for x in measured.loss],
        reference_loss=[x if math.isfinite(x) else 1e30 for x in reference.loss],
        loss_drift=finite[0],
        loss_bound=bound.loss,
        gradient_drift=finite[1],
        gradient_bound=bound.gradient,
        norm_drift=finite[2],
        norm_bound=bound.norm,
        passed=not broken,
        reason="; ".join(broken) or None,
    )


def _relative(difference: float, length: float) -> float:
    return difference / length if length else (math.inf if difference else 0.0)


def gradient_error(measured: dict[str, list[float]], reference: dict[str, list[float]]) -> tuple[float, str]:
    """Largest relative error over the parameters, and the parameter's name."""
    if measured.keys() != reference.keys():
        return math.inf, next(iter(measured.keys() ^ reference.keys()))
    errors = {}
    for name, theirs in reference.items():
        length = math.hypot(*theirs)
        difference = math.hypot(*(a - b for a, b in zip(measured[name], theirs, strict=True)))
        errors[name] = _relative(difference, length)
    worst = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    return errors[worst], worst


def _largest(values) -> float:
    """max() that lets a NaN through."""
    values = list(values)
    return math.nan if any(math.isnan(v) for v in values) else max(values)
