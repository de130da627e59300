"""The judge of every kernel: the reference in float64, and how far the plain low-precision path strays from it.

    truth   the reference on the inputs widened to float64
    eager   the reference on the inputs as they are: what PyTorch itself makes of this precision
    ours    the kernel on the inputs as they are

Of each output and each gradient, the largest error of *ours* may be at most twice that of *eager* plus one unit in the
last place of the largest number: ``2 · (max|eager - truth| + eps · max|truth|)``.

The interpreter's ``tl.dot`` on bf16 operands is garbage (Triton 3.7 and 3.9; fp16 and fp32 are right), so kernels with
a dot are tested in fp16 and fp32 there: `DOT_DTYPES`. Its conversion from fp32 to bf16 cuts the lower bits off where a
GPU rounds: up to twice a rounding's error, for which the bound has room. bf16 loads and stores are right.
"""

import importlib.util
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DOT_DTYPES = DTYPES if DEVICE.type == "cuda" else DTYPES[:2]

Results = dict[str, Tensor]


def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Normal numbers on the test device, the same on every machine."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE, dtype)


def widened(tensor: Tensor) -> Tensor:
    """In float64 if it has a fraction at all."""
    return tensor.double() if tensor.is_floating_point() else tensor


def differentiate(
    function: Callable, inputs: Mapping[str, Tensor], *, dtypes: Sequence[torch.dtype] | None = None
) -> Results:
    """What a function returns, and the gradient of every floating input for a random gradient of every output.

    Args:
        function: takes the inputs by name, returns a tensor or a tuple of them.
        inputs: name -> tensor; tensors without a fraction are passed on as they are.
        dtypes: what each output's gradient is rounded to, so that truth is given the same as eager and ours; None: what
            the outputs themselves are.
    """
    leaves = {name: t.detach().clone().requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
    returned = function(**leaves)
    outputs = (returned,) if isinstance(returned, Tensor) else tuple(returned)
    dtypes = dtypes or [o.dtype for o in outputs]
    gradients = [draw(*o.shape, dtype=dtypes[i], seed=1 + i).to(o.dtype) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, gradients)
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            assert leaf.grad is not None, f"{name} got no gradient"
            results[f"gradient of {name}"] = leaf.grad
    return results


def assert_as_good(ours: Results, eager: Results, truth: Results, factor: float = 2.0) -> None:
    """Raises AssertionError where a result is further from the truth than the bound, or of another type or shape.

    ``factor`` is for long sums in float32: two right orders of adding can differ by more than twice in luck.
    """
    assert ours.keys() == eager.keys() == truth.keys()
    for name, exact in truth.items():
        assert (ours[name].shape, ours[name].dtype) == (eager[name].shape, eager[name].dtype), name
        eps = torch.finfo(ours[name].dtype).eps
        allowed = factor * (_furthest(eager[name], exact) + eps * float(exact.abs().max() if exact.numel() else 0.0))
        error = _furthest(ours[name], exact)
        assert error <= allowed, f"{name} is off by {error:.3g}; {allowed:.3g} is allowed"  # also false for NaN


def _furthest(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max()) if exact.numel() else 0.0


def check(kernel: Callable, reference: Callable, inputs: Mapping[str, Tensor], factor: float = 2.0) -> None:
    """Holds a differentiable kernel against its reference on these inputs, forward and every gradient."""
    eager = differentiate(reference, inputs)
    dtypes = [result.dtype for name, result in eager.items() if name.startswith("output")]
    truth = differentiate(reference, {k: widened(v) for k, v in inputs.items()}, dtypes=dtypes)
    assert_as_good(differentiate(kernel, inputs), eager, truth, factor)


_numbers = itertools.count()


def twin(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """A copy of a kernel's file with a bug planted: ``old`` replaced by ``new`` in its source, loaded as a module.

    The tests that pass the original must fail the twin. Its ops get a namespace of their own.

    Args:
        module: a file of `kernels`.
        old: stands in the source exactly once.
        new: the bug.
        folder: for the copy; the kernel's compiler reads its source from there.
    """
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}; once is needed"
    name = f"twin_{next(_numbers)}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(old, new).replace('"stepladder::', f'"{name}::'))
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
