"""The in-place cross-entropy kernel: losses and gradients against float64, on shapes that break naive kernels.

Shapes: V below, at and above a block (4096) and far from a multiple of anything; GPT-2's own V = 50257 with and
without padding; one row; one column; many more padding columns than tokens; padding that begins a block, and ends in
another than it begins in.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import cross_entropy
from kernels.cross_entropy import CONFIGURATIONS, IGNORED, cross_entropy_, launch, reference
from tests.kernels.oracle import DEVICE, DTYPES, Results, assert_as_good, draw, twin

# (rows, vocab_size, columns)
SHAPES = [(3, 50257, 50304), (2, 50257, 50257), (5, 4097, 4224), (4, 4096, 4096), (1, 1, 1), (6, 65, 65), (7, 3, 130)]
SHAPES += [(2, 4096, 4160), (2, 4090, 8200)]


def some_targets(rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Random tokens, with one row ignored where there are several, and the last token among them."""
    targets = torch.randint(vocab_size, (rows,), generator=torch.Generator().manual_seed(seed))
    targets[-1] = vocab_size - 1
    if rows > 1:
        targets[rows // 2] = IGNORED
    return targets.to(DEVICE)


def results(losses: Tensor, gradient: Tensor, targets: Tensor) -> Results:
    """The gradient in two parts: beside the targets' -1, errors of all other columns would look small."""
    at_target = torch.arange(gradient.shape[1], device=DEVICE) == targets[:, None]
    return {"losses": losses, "gradient": gradient, "gradient beside the targets": gradient.masked_fill(at_target, 0.0)}


def written_out(logits: Tensor, targets: Tensor, vocab_size: int, z_loss: float) -> Results:
    logits = logits.detach().clone().requires_grad_()
    losses = reference(logits, targets, vocab_size=vocab_size, z_loss=z_loss)
    losses.sum().backward()
    return results(losses.detach(), logits.grad, targets)


def verify(op, logits: Tensor, targets: Tensor, vocab_size: int, z_loss: float = 0.0) -> None:
    """One call against the reference; the logits passed in stay as they are."""
    truth = written_out(logits.double(), targets, vocab_size, z_loss)
    eager = written_out(logits, targets, vocab_size, z_loss)
    buffer = logits.clone(memory_format=torch.preserve_format)
    losses = op(buffer, targets, vocab_size=vocab_size, z_loss=z_loss)
    assert_as_good(results(losses, buffer, targets), eager, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, vocab_size, columns = shape
    verify(cross_entropy_, draw(rows, columns, dtype=dtype, scale=3.0), some_targets(rows, vocab_size), vocab_size)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocab_size=st.integers(1, 9000),
    padding=st.integers(0, 300),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    offset=st.sampled_from([0.0, -1e4, 1e4]),
    z_loss=st.sampled_from([0.0, 1e-4]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_drawn_shapes_and_sizes(rows, vocab_size, padding, scale, offset, z_loss, dtype, seed) -> None:
    logits = draw(rows, vocab_size + padding, dtype=dtype, scale=scale, seed=seed) + offset
    verify(cross_entropy_, logits, some_targets(rows, vocab_size, seed), vocab_size, z_loss)


@pytest.mark.parametrize("c", CONFIGURATIONS, ids=lambda c: str(c.keywords))
def test_every_configuration_computes_the_same(c) -> None:
    def op(logits: Tensor, targets: Tensor, *, vocab_size: int, z_loss: float) -> Tensor:
        losses = torch.empty(len(logits), device=DEVICE)
        launch(logits, targets, losses, vocab_size=vocab_size, z_loss=z_loss, gradient=True, configuration=c)
        return losses

    verify(op, draw(2, 50304, dtype=torch.bfloat16), some_targets(2, 50257), 50257, 1e-4)


def test_any_strides() -> None:
    wide = draw(4, 3 * 500, dtype=torch.bfloat16)
    targets = some_targets(4, 490)
    for logits in (wide[:, 1:501], wide[:, ::3], draw(500, 4).t()):
        verify(cross_entropy_, logits, targets, 490)
    verify(cross_entropy_, wide[:, :500], some_targets(8, 490)[::2], 490)


def test_rows_beyond_32_bits() -> None:
    """Three rows, 2^30 numbers apart: addresses as in a large micro-batch, memory that is never touched."""
    logits = torch.empty(2**31 + 100, dtype=torch.bfloat16, device=DEVICE).as_strided((3, 100), (2**30, 1))
    logits.copy_(draw(3, 100))
    targets, near = some_targets(3, 100), logits.contiguous()
    losses = cross_entropy_(logits, targets, vocab_size=100)
    assert torch.equal(losses, cross_entropy_(near, targets, vocab_size=100)) and torch.equal(logits, near)


def test_columns_beyond_32_bits_are_refused() -> None:
    """Which no training makes: they would cost every other row a wider address."""
    logits = torch.empty(2**31 + 2, dtype=torch.bfloat16, device=DEVICE).as_strided((2, 3), (1, 2**30))
    with pytest.raises(ValueError, match="logits' columns are 1073741824 numbers apart, too far for a row of 3; copy"):
        cross_entropy_(logits, some_targets(2, 3), vocab_size=3)


@pytest.mark.parametrize(("columns", "wide"), [(70, False), (80, True)])
def test_what_is_timed_is_aligned_as_what_is_asked_for(columns: int, wide: bool, monkeypatch) -> None:
    """65 columns, of rows that allow wide loads or do not."""
    strides, asked = [], []
    monkeypatch.setattr(cross_entropy, "TRIAL_ROWS", 2)
    monkeypatch.setattr(cross_entropy, "launch", lambda logits, *_, **__: strides.append(logits.stride(0)))

    def pick(device: torch.device, shape: tuple, trial) -> None:
        asked.append(shape)
        trial()(None)

    monkeypatch.setattr(cross_entropy.TUNER, "pick", pick)
    cross_entropy_(draw(3, columns)[:, :65], some_targets(3, 65), vocab_size=65)
    assert [stride % 16 == 0 for stride in strides] == [wide, wide] and asked[0][-1] == wide


def test_minus_infinity_is_a_probability_of_zero() -> None:
    """Also where a whole block of columns has it, before the first finite number."""
    logits = draw(2, 9000)
    logits[:, :8000] = -torch.inf
    verify(cross_entropy_, logits, torch.tensor([8500, 8999], device=DEVICE), 9000)


def test_padding_never_counts_whatever_stands_in_it() -> None:
    logits = draw(3, 200)
    logits[:, 150:] = torch.nan
    losses = cross_entropy_(logits, some_targets(3, 150), vocab_size=150)
    assert losses.isfinite().all() and logits.isfinite().all() and not logits[:, 150:].any()


def test_without_a_gradient_the_logits_stay() -> None:
    logits, targets = draw(3, 200), some_targets(3, 150)
    before = logits.clone()
    losses = cross_entropy_(logits, targets, vocab_size=150, gradient=False)
    assert torch.equal(logits, before)
    torch.testing.assert_close(losses, reference(before, targets, vocab_size=150))


@pytest.mark.parametrize("target", [150, 199, -1, 2**40])
def test_a_target_that_is_no_token_makes_a_nan(target: int) -> None:
    losses = cross_entropy_(draw(2, 200), torch.tensor([target, 3], device=DEVICE), vocab_size=150)
    assert losses.isnan().tolist() == [True, False]


def test_twice_is_the_same_bit_by_bit() -> None:
    logits, targets = draw(4, 5000, dtype=torch.bfloat16), some_targets(4, 5000)
    first, second = logits.clone(), logits.clone()
    losses = [cross_entropy_(buffer, targets, vocab_size=5000) for buffer in (first, second)]
    assert torch.equal(*losses) and torch.equal(first, second)


SUM = "tl.sum(tl.exp(x - shift), 0)"
BUGS = {
    "padding in the softmax": ('tl.where(columns < V, x, -float("inf"))', "x"),
    "padding left as it was": ("gradient, mask=columns < P)", "gradient, mask=columns < V)"),
    "old sum not rescaled": ("total * tl.exp(before - shift)", "total"),
    "ignored rows get a gradient": ("tl.where(counts, gradient, 0.0)", "gradient"),
    "ignored rows get a loss": ("tl.where(counts, loss, 0.0)", "loss"),
    "one-hot forgotten": ("- tl.where(columns == target, 1.0, 0.0)", ""),
    "z-loss without a gradient": ("+ z_slope * probability", ""),
    "a sum in the logits' type": (SUM, SUM + ".to(logits_ptr.dtype.element_ty).to(tl.float32)"),
    "whole blocks alone in the sum": ("for LAST in tl.static_range(2)", "for LAST in tl.static_range(1)"),
    "the last block alone in the sum": ("for LAST in tl.static_range(2)", "for LAST in tl.static_range(1, 2)"),
    "no gradient in whole blocks": ("for WHOLE in tl.static_range(2)", "for WHOLE in tl.static_range(1)"),
    "no gradient in the last block": ("for WHOLE in tl.static_range(2)", "for WHOLE in tl.static_range(1, 2)"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    planted = twin(cross_entropy, *BUGS[bug], tmp_path)
    logits, targets = draw(5, 5120, dtype=torch.bfloat16), some_targets(5, 5000)
    logits[:, 4096:] += 8.0  # the maximum rises from the first block to the second
    verify(cross_entropy_, logits, targets, 5000, z_loss=1e-2)
    with pytest.raises(AssertionError, match="is off by"):
        verify(planted.cross_entropy_, logits, targets, 5000, z_loss=1e-2)


def test_it_is_a_well_behaved_op() -> None:
    for gradient in (True, False):
        torch.library.opcheck(
            cross_entropy_, (draw(3, 70), some_targets(3, 65)), {"vocab_size": 65, "z_loss": 1e-4, "gradient": gradient}
        )


def test_it_can_be_compiled() -> None:
    def losses_and_gradient(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ weight.t()
        return cross_entropy_(logits, targets, vocab_size=65), logits

    inputs = draw(4, 8), draw(70, 8, seed=1), some_targets(4, 65)
    compiled = torch.compile(losses_and_gradient, fullgraph=True)
    for ours, theirs in zip(compiled(*inputs), losses_and_gradient(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4)}, r"logits are torch.float32 \(2, 3, 4\)"),
        ({"logits": torch.zeros(2, 4, dtype=torch.float64)}, "logits are torch.float64"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"targets are torch.int64 \(3,\); .* of shape \(2,\)"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, "targets are torch.int32"),
        ({"vocab_size": 5}, "vocab_size is 5; it must lie between 1 and the number of columns, 4"),
    ],
)
def test_wrong_inputs_are_refused_by_name(change: dict, message: str) -> None:
    inputs = {"logits": torch.zeros(2, 4), "targets": torch.zeros(2, dtype=torch.int64), "vocab_size": 4} | change
    with pytest.raises(ValueError, match=message):
        cross_entropy_(**inputs)


def test_without_the_interpreter_a_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="cannot run on cpu: needs an NVIDIA GPU"):
        cross_entropy_(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), vocab_size=4)


def test_no_rows_no_losses() -> None:
    assert cross_entropy_(draw(0, 5), some_targets(1, 5)[:0], vocab_size=5).shape == (0,)
