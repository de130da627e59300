"""pea as second opinion on what the Triton kernels are held to: every kernel's reference, numbers and gradients."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pea import transformer
from pea.value import dot
from tests.pea.oracle import Case, check
from tests.pea.test_transformer import QKV, TARGETS, mlp_by_values

pytest.importorskip("triton")

from kernels import (  # noqa: E402
    adamw,
    bias_gelu,
    cross_entropy,
    flash_attention,
    layer_norm,
    linear_cross_entropy,
    linear_gelu,
)

VOCAB, Z_LOSS = 7, 0.1  # the eighth column of logits is padding
ADAMW = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3, "max_norm": 1.0}


def losses(logits):
    """The mean over the positions that count, with z-loss, in Values."""
    counted = [(row[:VOCAB], target) for row, target in zip(logits, TARGETS) if target >= 0]
    z = sum(sum(value.exp() for value in row).log() ** 2 for row, _ in counted)
    rows, targets = zip(*counted)
    return transformer.cross_entropy(rows, targets) + Z_LOSS * z / len(counted)


def mean(rows: torch.Tensor) -> torch.Tensor:
    return rows.sum() / sum(target >= 0 for target in TARGETS)


def update(parameter, exp_avg, root, gradient):
    """AdamW after a clip to half the gradient; ``root`` squared is the second moment."""
    updated = []
    for p, m, r, g in zip(parameter, exp_avg, root, gradient):
        g = g * (1.0 / (2.0 + 1e-6))
        m, v = 0.9 * m + 0.1 * g, 0.95 * r**2 + 0.05 * g**2
        updated.append(p * (1 - 0.01) - 0.1 / (1 - 0.9**3) * m / (v**0.5 / math.sqrt(1 - 0.95**3) + 1e-8))
    return updated


CASES = {
    flash_attention: Case(
        name="flash attention", scalars=transformer.attention, shapes=QKV,
        tensors=lambda q, k, v: flash_attention.reference(torch.stack((q, k, v), 1)[None, :, :, None])[0, :, 0],
    ),
    layer_norm: Case(
        name="residual + layer norm", shapes={"x": (3, 5), "residual": (3, 5), "weight": (5,), "bias": (5,)},
        scalars=lambda x, residual, weight, bias: transformer.layer_norm(transformer.added(x, residual), weight, bias),
        tensors=lambda *inputs: layer_norm.reference(*inputs)[1],
    ),
    bias_gelu: Case(
        name="bias + GELU", shapes={"x": (3, 5), "bias": (5,)},
        scalars=lambda x, bias: [[transformer.gelu(v + b) for v, b in zip(row, bias)] for row in x],
        tensors=bias_gelu.reference,
    ),
    linear_gelu: Case(
        name="MLP", scalars=mlp_by_values, tensors=linear_gelu.reference,
        shapes={"x": (2, 3), "weight_1": (12, 3), "bias_1": (12,), "weight_2": (3, 12), "bias_2": (3,)},
    ),
    cross_entropy: Case(
        name="cross-entropy", shapes={"logits": (4, 8)}, scalars=losses,
        tensors=lambda logits: mean(
            cross_entropy.reference(logits, torch.tensor(TARGETS), vocab_size=VOCAB, z_loss=Z_LOSS)
        ),
    ),
    linear_cross_entropy: Case(
        name="linear + cross-entropy", shapes={"x": (4, 3), "weight": (8, 3)},
        scalars=lambda x, weight: losses([[dot(row, w) for w in weight] for row in x]),
        tensors=lambda x, weight: linear_cross_entropy.reference(
            x, weight, torch.tensor(TARGETS), vocab_size=VOCAB, z_loss=Z_LOSS
        ),
    ),
    adamw: Case(
        name="AdamW", shapes={"parameter": (3,), "exp_avg": (3,), "root": (3,), "gradient": (3,)}, scalars=update,
        tensors=lambda p, m, root, g: adamw.reference(p, m, root.square(), g, torch.tensor(2.0).double(), **ADAMW)[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_reference(case: Case) -> None:
    check(case)


def test_every_kernel_is_here() -> None:
    files = Path(adamw.__file__).parent.glob("*.py")
    with_a_reference = {path.stem for path in files if "\ndef reference(" in path.read_text()}
    assert with_a_reference == {module.__name__.removeprefix("kernels.") for module in CASES}


def test_a_wrong_reference_is_told_apart() -> None:
    exact = replace(CASES[bias_gelu], tensors=lambda x, bias: F.gelu(x + bias))
    with pytest.raises(AssertionError):
        check(exact)
