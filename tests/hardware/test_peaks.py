import time

import pytest
import torch

from hardware import peaks
from hardware.device import Device
from hardware.peaks import measured_peaks

CPU = Device(kind="cpu", name="x", slug="x", memory_bytes=2**33, capability=None, count=1)


def test_peaks_of_this_processor_are_positive_plausible_and_in_time():
    rng = torch.get_rng_state()
    began = time.perf_counter()
    found = measured_peaks(CPU, budget_s=0.8)
    assert time.perf_counter() - began < 8
    assert set(found["tflops"]) == {"fp32", "bf16", "fp16"}
    assert 1e-3 < found["tflops"]["fp32"] < 100  # a processor lies between 1 GFLOP/s and 100 TFLOP/s
    assert all(0 < value < 1000 for value in found["tflops"].values())
    assert 0.5 < found["bandwidth_gbps"] < 5000
    assert "wall clock" in found["method"] and "fp32 " in found["method"]
    assert torch.equal(torch.get_rng_state(), rng), "measuring must not disturb the global generator"


def test_rates_are_counted_as_two_operations_per_product_and_two_bytes_per_byte(monkeypatch):
    monkeypatch.setattr(peaks, "_time_once", lambda device, work: 0.5)
    n, tflops = peaks._matmul_tflops(CPU, torch.float32, 8192, budget_s=0.001)
    assert n == 256 and tflops == 2 * 256**3 / 0.5 / 1e12
    num_bytes, gbps = peaks._copy_gbps(CPU, 2**20, budget_s=0.001)
    assert num_bytes == 2**20 and gbps == 2 * 2**20 / 0.5 / 1e9


def test_tf32_is_measured_at_high_precision_the_rest_at_highest_and_the_setting_restored(monkeypatch):
    class TensorCores(Device):
        def supports(self, number_format):
            return number_format in ("fp32", "tf32", "bf16")

    device = TensorCores(kind="cpu", name="x", slug="x", memory_bytes=2**33, capability=None, count=1)
    seen = []

    def fake(device, dtype, n, budget_s):
        seen.append((dtype, torch.get_float32_matmul_precision()))
        return n, 1.0

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(peaks, "_matmul_tflops", fake)
    monkeypatch.setattr(peaks, "_copy_gbps", lambda device, n, budget_s: (n, 1.0))
    torch.set_float32_matmul_precision("medium")
    try:
        measured_peaks(device, budget_s=0.1)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [(torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest")]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_takes_a_smaller_size(monkeypatch, error):
    def fits_1024(device, dtype, n, budget_s):
        if n > 1024:
            raise error
        return n, 1.0

    def copy(device, num_bytes, budget_s):
        raise error

    monkeypatch.setattr(peaks, "_matmul_tflops", fits_1024)
    monkeypatch.setattr(peaks, "_copy_gbps", copy)
    found = measured_peaks(CPU, budget_s=0.1)
    assert "fp32 1024" in found["method"] and found["tflops"]["fp32"] == 1.0
    assert "bandwidth_gbps" not in found


def test_other_errors_are_not_swallowed(monkeypatch):
    def broken(*args):
        raise RuntimeError("an illegal instruction was encountered")

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(peaks, "_matmul_tflops", broken)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        measured_peaks(CPU, budget_s=0.1)
    assert torch.get_float32_matmul_precision() == before


def test_a_budget_must_be_positive():
    with pytest.raises(ValueError, match="budget_s is 0"):
        measured_peaks(CPU, budget_s=0)
