"""Head and loss in one function: against float64, in chunks of every kind, and never more logits in memory than it was
told.

The matrix products are PyTorch's own, so bf16 is fine in the interpreter too.
"""

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import cross_entropy, fp8
from kernels import linear_cross_entropy as module
from kernels.cross_entropy import IGNORED
from kernels.linear_cross_entropy import chunk_rows_for, linear_cross_entropy, reference
from tests.kernels.oracle import DEVICE, check, differentiate, draw, twin

DTYPES = (torch.float32, torch.bfloat16)
SCALES = pytest.mark.parametrize("scales", [fp8.DYNAMIC, fp8.STATIC], ids=["dynamic", "static"])
HAS_FP8 = pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="this GPU has no fp8 arithmetic"
)


def inputs(rows: int, vocab_size: int, *, padding: int = 0, channels=24, dtype=torch.float32, seed: int = 0) -> dict:
    targets = torch.randint(vocab_size, (rows,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    targets[1::5] = IGNORED
    return {
        "x": draw(rows, channels, dtype=dtype, seed=seed),
        "weight": draw(vocab_size + padding, channels, dtype=dtype, scale=0.5, seed=seed + 1),
        "targets": targets,
    }


def verify(function: Callable, given: dict, *, vocab_size: int, chunk_rows: int | None, z_loss: float = 0.0) -> None:
    keywords = {"vocab_size": vocab_size, "z_loss": z_loss}
    factor = 4.0 if given["x"].dtype == torch.float32 else 2.0
    check(partial(function, **keywords, chunk_rows=chunk_rows), partial(reference, **keywords), given, factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 4, 7, 12, 100, None])
def test_loss_and_gradients_in_chunks_of_any_size(chunk_rows: int | None, dtype: torch.dtype) -> None:
    verify(linear_cross_entropy, inputs(12, 301, padding=19, dtype=dtype), vocab_size=301, chunk_rows=chunk_rows)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 12),
    vocab_size=st.integers(1, 500),
    padding=st.integers(0, 70),
    channels=st.integers(8, 40),
    chunk_rows=st.none() | st.integers(1, 14),
    z_loss=st.sampled_from([0.0, 1e-2]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_drawn_shapes(rows, vocab_size, padding, channels, chunk_rows, z_loss, dtype, seed) -> None:
    given = inputs(rows, vocab_size, padding=padding, channels=channels, dtype=dtype, seed=seed)
    verify(linear_cross_entropy, given, vocab_size=vocab_size, chunk_rows=chunk_rows, z_loss=z_loss)


def test_gpt2s_own_vocabulary() -> None:
    verify(linear_cross_entropy, inputs(3, 50257, channels=8, dtype=torch.bfloat16), vocab_size=50257, chunk_rows=2)


def test_batches_and_strides() -> None:
    given = inputs(12, 65)
    flat = linear_cross_entropy(**given, vocab_size=65)
    shaped = {"x": given["x"].view(3, 4, -1), "weight": given["weight"], "targets": given["targets"].view(3, 4)}
    assert torch.equal(linear_cross_entropy(**shaped, vocab_size=65), flat)
    strided = {name: given[name].t().contiguous().t() for name in ("x", "weight")}
    verify(linear_cross_entropy, given | strided, vocab_size=65, chunk_rows=5)


@pytest.mark.parametrize("chunk_rows", [5, 12])
def test_autocast_computes_in_bf16_and_sums_the_tables_gradient_in_fp32(chunk_rows: int) -> None:
    """As a linear layer does, but for the sum."""
    given = inputs(12, 301, padding=19)
    found, errors = {}, {}
    functions = {"ours": partial(linear_cross_entropy, chunk_rows=chunk_rows), "eager": reference, "truth": reference}
    for name, function in functions.items():
        made = {k: v.double() if name == "truth" and k != "targets" else v for k, v in given.items()}
        leaves = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in made.items()}
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=name != "truth"):
            loss = function(**leaves, vocab_size=301)
        loss.backward()
        found[name] = loss.detach(), leaves["x"].grad, leaves["weight"].grad
    for name in ("ours", "eager"):
        errors[name] = [float((a - b).norm() / b.norm()) for a, b in zip(found[name], found["truth"], strict=True)]
    assert found["ours"][1].dtype == found["ours"][2].dtype == torch.float32
    for ours, eager in zip(errors["ours"], errors["eager"], strict=True):
        assert 1e-5 < ours < 2 * eager + 1e-4  # bf16 indeed


def test_without_gradients_only_the_loss_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(12, 65)
    asked = []
    monkeypatch.setattr(module, "cross_entropy_", lambda *a, **k: asked.append(k["gradient"]) or original(*a, **k))
    loss = linear_cross_entropy(**given, vocab_size=65)
    given["x"].requires_grad_()
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(**given, vocab_size=65), loss)
    trained = linear_cross_entropy(**given, vocab_size=65)
    assert asked == [False, False, True] and trained.requires_grad
    torch.testing.assert_close(trained.detach(), loss)


original = module.cross_entropy_


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory in use at a time beyond what was in use before."""
    if DEVICE.type == "cuda":
        function()  # tunes, and takes the scratch memory that the vendor's library keeps
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    changes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert changes, "the profiler saw no allocation"
    used = peak = 0
    for change in changes:
        used += change
        peak = max(peak, used)
    return peak


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_stays_with_the_chunk(dtype: torch.dtype) -> None:
    """Beside the chunk's logits there are the gradients, and the table's from one chunk; never all logits."""
    rows, vocab_size, chunk_rows = 128, 4096, 8
    given = inputs(rows, vocab_size, channels=8, dtype=dtype)
    leaves = [given["x"].requires_grad_(), given["weight"].requires_grad_()]

    def step(function: Callable) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(**given, vocab_size=vocab_size), leaves)

    all_logits = rows * vocab_size * given["x"].itemsize
    chunk = chunk_rows * vocab_size * given["x"].itemsize
    tables = 4 * given["weight"].numel() * 4
    chunked = peak_bytes(step(partial(linear_cross_entropy, chunk_rows=chunk_rows)))
    whole = peak_bytes(step(partial(linear_cross_entropy, chunk_rows=rows)))
    plain = peak_bytes(step(reference))
    assert chunk < chunked < chunk + tables + all_logits // 8
    assert all_logits < whole < 1.5 * all_logits  # a processor's product in bf16 takes scratch memory
    assert plain > 3 * all_logits  # what all this is for


@HAS_FP8
def test_no_fp8_numbers_are_kept_for_the_backward_pass() -> None:
    given = inputs(12, 301, padding=19, channels=32, dtype=torch.bfloat16)
    leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in given.items()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear_cross_entropy(**leaves, vocab_size=301, scales=fp8.DYNAMIC)
    assert sorted(t.shape for t in kept if t.dim()) == [(12, 32), (320, 32)]  # the gradients of x and of the table


@HAS_FP8
def test_one_chunks_logits_at_a_time_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are new tensors there: the last chunk's must be gone before the next one's are made."""
    made, original = [], fp8.product

    def product(*arguments: object) -> Tensor:
        assert all(logits() is None for logits in made)
        logits = original(*arguments)
        made.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(fp8, "product", product)
    given = inputs(12, 301, padding=19, channels=32, dtype=torch.bfloat16)
    linear_cross_entropy(**given, vocab_size=301, chunk_rows=5, scales=fp8.STATIC)
    assert len(made) == 3


@pytest.mark.parametrize(("gib", "rows"), [(8, 2048), (24, 4096), (80, 16384), (0.1, 128)])
def test_chunks_suit_the_card(gib: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert chunk_rows_for(torch.device("cuda", 0), 50304, 2) == rows


def test_no_row_that_counts_is_no_number() -> None:
    given = inputs(3, 65)
    given["targets"].fill_(IGNORED)
    assert linear_cross_entropy(**given, vocab_size=65).isnan()
    assert reference(**given, vocab_size=65).isnan()


def written_out_in_fp8(x: Tensor, weight: Tensor, targets: Tensor, *, scales: fp8.Scales, **keywords) -> Tensor:
    """`reference` with logits from `kernels.fp8`, which has tests of its own, left in bf16 as the op has them."""
    logits = fp8.linear(x, weight, scales=scales)
    losses = cross_entropy.reference(logits, targets, **keywords)
    return losses.sum() / (targets != IGNORED).sum()


def verify_in_fp8(function: Callable, given: dict, scales: fp8.Scales, **keywords) -> None:
    found = differentiate(partial(function, scales=scales, vocab_size=301, z_loss=1e-2, **keywords), given)
    expected = differentiate(partial(written_out_in_fp8, scales=scales, vocab_size=301, z_loss=1e-2), given)
    for name, exact in expected.items():
        assert found[name].dtype == exact.dtype, name
        error = float((found[name].float() - exact.float()).abs().max() / exact.float().abs().max())
        assert error <= (1e-5 if name == "output 0" else 2.0**-6), f"{name} is off by {error:.3g}"


@HAS_FP8
@SCALES
@pytest.mark.parametrize("chunk_rows", [1, 5, None])
def test_logits_in_fp8_in_chunks_of_any_size(chunk_rows: int | None, scales: fp8.Scales) -> None:
    """Rows of very different sizes: a chunk with the scales of another one would show."""
    given = inputs(12, 301, padding=19, channels=32, dtype=torch.bfloat16)
    given["x"] *= torch.exp2(torch.arange(-3.0, 3.0, 0.5, device=DEVICE))[:, None].to(torch.bfloat16)
    for weight in (given["weight"], given["weight"].float()):
        verify_in_fp8(linear_cross_entropy, given | {"weight": weight}, scales, chunk_rows=chunk_rows)


FP8_BUGS = {
    "always the first chunk's scales": ("scales[chunk] if", "scales[: len(x[chunk])] if"),
    "always the first chunk's rows": ("fp8.product(rows[chunk]", "fp8.product(rows[: len(x[chunk])]"),
    "logits in 16 bits": ("if scales is not None", "if False"),
    "16-bit scales for fp8 numbers": ("columns, column_scales, None", "columns, column_scales * 1.02, None"),
}


@HAS_FP8
@pytest.mark.parametrize("bug", FP8_BUGS)
def test_a_bug_planted_in_fp8s_way_is_found(bug: str, tmp_path: Path) -> None:
    given = inputs(12, 301, padding=19, channels=32, dtype=torch.bfloat16)
    given["x"] *= torch.exp2(torch.arange(-3.0, 3.0, 0.5, device=DEVICE))[:, None].to(torch.bfloat16)
    planted = twin(module, *FP8_BUGS[bug], tmp_path)
    with pytest.raises(AssertionError, match="is off by"):
        verify_in_fp8(planted.linear_cross_entropy, given, fp8.DYNAMIC, chunk_rows=5)


BUGS = {
    "only the last chunk's gradient": ("dweight += logits.t()", "dweight = logits.t()"),
    "rows after the last whole chunk": ("range(0, N, chunk", "range(0, N // chunk_rows * chunk_rows, chunk"),
    "always the first chunk's targets": ("targets[chunk]", "targets[: len(logits)]"),
    "the loss's own gradient forgotten": ("dweight * grad", "dweight"),
    "mean over ignored rows too": ("total / (targets != IGNORED).sum()", "total / targets.numel()"),
    "padding in the softmax": ("targets[chunk], vocab_size=vocab_size", "targets[chunk], vocab_size=P"),
    "z-loss lost on the way": ("z_loss=z_loss, gradient=gradient)\n", "z_loss=0.0, gradient=gradient)\n"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    given = inputs(11, 301, padding=19, dtype=torch.bfloat16)
    planted = twin(module, *BUGS[bug], tmp_path)
    verify(linear_cross_entropy, given, vocab_size=301, chunk_rows=4, z_loss=1e-2)
    with pytest.raises(AssertionError, match="is off by"):
        verify(planted.linear_cross_entropy, given, vocab_size=301, chunk_rows=4, z_loss=1e-2)


def test_it_is_a_well_behaved_op() -> None:
    given = inputs(6, 65, padding=5)
    x, weight = given["x"].requires_grad_(), given["weight"].requires_grad_()
    keywords = {"vocab_size": 65, "z_loss": 0.0, "chunk_rows": 4, "gradient": True}
    torch.library.opcheck(module._loss_and_gradients, (x, weight, given["targets"], []), keywords)
    torch.library.opcheck(
        module._loss_and_gradients, (x.detach(), weight.detach(), given["targets"], []), keywords | {"gradient": False}
    )


@HAS_FP8
@SCALES
def test_it_is_a_well_behaved_op_in_fp8(scales: fp8.Scales) -> None:
    given = inputs(6, 65, padding=15, channels=16, dtype=torch.bfloat16)
    x, weight = given["x"].requires_grad_(), given["weight"].requires_grad_()
    quantised = [
        *fp8.quantise(x.detach(), scales.activation), *fp8.quantise(weight.detach(), scales.weight),
    ]  # fmt: skip
    keywords = {"vocab_size": 65, "z_loss": 0.0, "chunk_rows": 4, "gradient": True}
    # Its test of the schema would compare e4m3 numbers, for which PyTorch has no arithmetic.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        module._loss_and_gradients, (x, weight, given["targets"], quantised), keywords, test_utils=checks
    )


def test_it_can_be_compiled() -> None:
    given = inputs(12, 65, padding=5)
    leaves = [given["x"].requires_grad_(), given["weight"].requires_grad_()]

    def loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return 0.5 * linear_cross_entropy(x * 2, weight, targets, vocab_size=65, chunk_rows=5)

    compiled = torch.compile(loss, fullgraph=True)
    for ours, theirs in zip(*(torch.autograd.grad(f(**given), leaves) for f in (compiled, loss)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-5)  # the compiler rounds to bf16 less often
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given), loss(**given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 3, dtype=torch.float16)}, "x is torch.float16; it must be float32 or bfloat16"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"x is \(4, 3\), weight \(5, 3\), targets \(3,\); they"),
        ({"weight": torch.zeros(5, 2)}, r"weight \(5, 2\)"),
        ({"vocab_size": 6}, "vocab_size is 6"),
        ({"chunk_rows": 0}, "chunk_rows is 0; it must be at least 1, or None"),
        ({"scales": fp8.STATIC}, "x is torch.float32; for fp8 it must be bfloat16"),
        ({"scales": fp8.STATIC, "x": torch.zeros(4, 3, dtype=torch.bfloat16)}, r"weight is \(5, 3\); fp8 needs"),
    ],
)
def test_wrong_inputs_are_refused_by_name(change: dict, message: str) -> None:
    targets = torch.zeros(4, dtype=torch.int64)
    right = {"x": torch.zeros(4, 3), "weight": torch.zeros(5, 3), "targets": targets, "vocab_size": 5}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**right | change)
