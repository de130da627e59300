"""What this device reaches at best when measured: one large matrix product per number format, and one large copy.

A data sheet promises; this is what a single library call attains here, today, at this clock and power limit. Operands
are random: chips draw less power on zeros, clock higher, and would flatter themselves.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hardware.device import Device

if TYPE_CHECKING:
    import torch

GPU_MATMUL_SIZE = 8192  # large enough for every SM of today's largest chip
GPU_COPY_BYTES = 2**30  # far beyond any cache
CPU_COPY_BYTES = 2**28
CPU_MATMUL_SECONDS = 0.1  # a processor's size is grown until one product takes this long
REPEAT_SECONDS = 0.5  # long enough for a power limit to bite, as it will in training


def measured_peaks(device: Device, *, budget_s: float = 5.0) -> dict[str, Any]:
    """Measures the best matrix-product rate per number format and the best copy bandwidth.

    Args:
        device: the device to measure.
        budget_s: about how long to take, seconds; shared evenly between the formats and the copy.

    Returns:
        {"tflops": {format: TFLOP/s}, "bandwidth_gbps": GB/s, bytes read plus bytes written, "method": text}.
        A format is left out, and so is the bandwidth, where not even a small size fits in memory.

    Raises:
        ValueError: the budget is not positive.
    """
    import torch

    if budget_s <= 0:
        raise ValueError(f"budget_s is {budget_s}; give a positive number of seconds")
    formats = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    formats = {name: dtype for name, dtype in formats.items() if device.supports(name)}
    share = budget_s / (len(formats) + 1)
    tflops: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for name, dtype in formats.items():
        with _float32_precision("high" if name == "tf32" else "highest"):
            measured = _smaller_until_it_fits(
                lambda n, dtype=dtype: _matmul_tflops(device, dtype, n, share), start=GPU_MATMUL_SIZE, smallest=256
            )
        if measured is not None:
            sizes[name], tflops[name] = measured
    result: dict[str, Any] = {"tflops": tflops}
    copy_bytes = CPU_COPY_BYTES if device.kind == "cpu" else GPU_COPY_BYTES
    copied = _smaller_until_it_fits(lambda n: _copy_gbps(device, n, share), start=copy_bytes, smallest=2**20)
    if copied is not None:
        copy_bytes, result["bandwidth_gbps"] = copied
    clock = "CUDA events" if device.kind == "cuda" else "wall clock"
    result["method"] = (
        f"shortest of several times ({clock}) of square matrix products of random numbers ("
        + ", ".join(f"{name} {n}" for name, n in sizes.items())
        + f") and of a copy of {copy_bytes // 2**20} MiB, bytes read plus bytes written"
    )
    return result


def _matmul_tflops(device: Device, dtype: "torch.dtype", largest: int, budget_s: float) -> tuple[int, float]:
    """Rate of an n x n product, n at most `largest`; a processor gets the size that takes about a tenth of a second."""
    import torch

    deadline = time.perf_counter() + budget_s
    n = largest if device.kind != "cpu" else min(256, largest)
    while True:
        generator = torch.Generator(device=device.torch_device()).manual_seed(0)  # leaves the global generator alone
        a, b = (torch.randn(n, n, generator=generator, device=device.torch_device()).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype, device=device.torch_device())
        product = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
        product()  # the first call of a shape also picks a kernel
        seconds = min(_time_once(device, product) for _ in range(2))
        # Growing costs 8 times as long per doubling; stop while that still leaves room for a few repeats.
        if n >= largest or seconds > CPU_MATMUL_SECONDS / 4 or time.perf_counter() + 24 * seconds > deadline:
            break
        n *= 2
    return n, 2 * n**3 / min(_repeat(device, product, deadline)) / 1e12


def _copy_gbps(device: Device, num_bytes: int, budget_s: float) -> tuple[int, float]:
    import torch

    deadline = time.perf_counter() + budget_s
    source = torch.ones(num_bytes // 4, device=device.torch_device())
    target = torch.zeros_like(source)  # written once before timing, so that its pages exist
    return num_bytes, 2 * num_bytes / min(_repeat(device, lambda: target.copy_(source), deadline)) / 1e9


def _repeat(device: Device, work: Callable[[], object], deadline: float) -> Iterator[float]:
    """Seconds of one call after another: at least three, otherwise for half a second or until the deadline."""
    deadline = min(deadline, time.perf_counter() + REPEAT_SECONDS)
    repeats = 0
    while repeats < 3 or time.perf_counter() < deadline:
        yield _time_once(device, work)
        repeats += 1


def _time_once(device: Device, work: Callable[[], object]) -> float:
    import torch

    if device.kind == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    device.synchronize()
    began = time.perf_counter()
    work()
    device.synchronize()
    return time.perf_counter() - began


def _smaller_until_it_fits(
    measure: Callable[[int], tuple[int, float]], *, start: int, smallest: int
) -> tuple[int, float] | None:
    """Halves the size on out-of-memory; None when even the smallest does not fit."""
    import torch

    size = start
    while size >= smallest:
        try:
            return measure(size)
        except (torch.OutOfMemoryError, MemoryError):
            pass
        except RuntimeError as error:
            if "memory" not in str(error):  # the CPU allocator raises a plain RuntimeError
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size //= 2
    return None


@contextmanager
def _float32_precision(precision: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
