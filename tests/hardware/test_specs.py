import re

import pytest

from hardware.device import Device, slugify
from hardware.specs import SPECS, datasheet_peaks, lookup

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "bf16", "fp16", "tf32", "fp32", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 989.4, 494.7, 66.9, 3350),
        ("NVIDIA H100 PCIe", 756, 756, 378, 51.2, 2000),
        ("NVIDIA H100 NVL", 835.5, 835.5, 417.5, 60, 3900),
        ("NVIDIA H200", 989.4, 989.4, 494.7, 66.9, 4800),
        ("NVIDIA A100-SXM4-80GB", 312, 312, 156, 19.5, 2039),
        ("A100-SXM4-40GB", 312, 312, 156, 19.5, 1555),
        ("NVIDIA A100-PCIE-40GB", 312, 312, 156, 19.5, 1555),
        ("NVIDIA A100 80GB PCIe", 312, 312, 156, 19.5, 1935),
        ("NVIDIA A30", 165, 165, 82, 10.3, 933),
        ("NVIDIA L4", 121, 121, 60, 30.3, 300),
        ("Tesla T4", None, 65, None, 8.1, 320),
        ("NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6, 1008),
        ("NVIDIA GeForce RTX 5090", 209.5, 209.5, 104.8, 104.8, 1792),
        ("NVIDIA GeForce RTX 3070 Laptop GPU", 33.2, 33.2, 16.6, 16.6, 448),
    ],
)
def test_known_cards(name, bf16, fp16, tf32, fp32, bandwidth):
    spec = lookup(name)
    assert spec is not None
    assert [spec.tflops.get(f) for f in ("bf16", "fp16", "tf32", "fp32")] == [bf16, fp16, tf32, fp32]
    assert spec.bandwidth_gbps == bandwidth


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA GeForce RTX 3070 Ti Laptop GPU",
        "NVIDIA L40",
        "NVIDIA L4 something",
        "NVIDIA A300",
        "NVIDIA A10G",
        "GRID T4-8Q",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_a_near_miss_has_no_peak(name):
    assert lookup(name) is None


def test_the_same_name_with_other_memory_has_no_peak():
    assert lookup("NVIDIA GeForce RTX 3080", 10 * GIB) is not None
    assert lookup("NVIDIA GeForce RTX 3080", 12 * GIB) is None  # another chip under the same name
    assert lookup("NVIDIA H100 80GB HBM3", 10 * GIB) is None  # a slice that does not say so
    # What torch reports, error correction and driver already taken off.
    assert lookup("NVIDIA H100 80GB HBM3", 85_017_493_504) is not None
    assert lookup("NVIDIA H200", 150_110_011_392) is not None
    assert lookup("Tesla T4", 15_637_086_208) is not None
    assert lookup("NVIDIA L4", 23_580_639_232) is not None


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.pattern)
def test_every_entry_is_complete_and_consistent(spec):
    assert re.search(r"https://\S+", spec.source) and len(spec.source.split("https://")[0]) > 10
    assert spec.bandwidth_gbps > 0 and spec.memory_gib > 0
    order = [spec.tflops[f] for f in ("fp32", "tf32", "bf16", "fp8") if f in spec.tflops]
    assert order == sorted(order) and order[0] > 0, "a narrower format is never slower"
    assert spec.tflops.get("bf16", spec.tflops["fp16"]) == spec.tflops["fp16"]
    if {"tf32", "bf16"} <= spec.tflops.keys():  # tensor cores: half the rate at twice the width, in every generation
        assert spec.tflops["bf16"] / spec.tflops["tf32"] == pytest.approx(2, rel=0.02)


def test_no_name_has_two_entries():
    names = [spec.pattern for spec in SPECS]
    assert len(set(names)) == len(names)
    for name in names:
        assert sum(re.fullmatch(spec.pattern, name) is not None for spec in SPECS) == 1


def test_datasheet_peaks_of_a_device():
    def device(kind: str, name: str, memory_bytes: int) -> Device:
        return Device(
            kind=kind, name=name, slug=slugify(name), memory_bytes=memory_bytes, capability=(8, 9), count=1
        )

    peaks = datasheet_peaks(device("cuda", "NVIDIA GeForce RTX 4090", 24 * GIB))
    assert peaks is not None and set(peaks) == {"tflops", "bandwidth_gbps", "source"}
    assert peaks["tflops"]["bf16"] == 165.2
    peaks["tflops"]["bf16"] = 1.0  # the caller's copy, not the table
    assert lookup("NVIDIA GeForce RTX 4090").tflops["bf16"] == 165.2
    assert datasheet_peaks(device("cuda", "NVIDIA GeForce RTX 4090 D", 24 * GIB)) is None
    assert datasheet_peaks(device("cpu", "AMD EPYC", 24 * GIB)) is None
