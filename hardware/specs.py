"""What each GPU could do at best, by its data sheet: the denominator of MFU and of the roofline.

Every figure is DENSE (data sheets like to print the one with 2:4 sparsity, twice as high) and, for fp16 and fp8, with
accumulation in fp32, which GeForce cards run at half the speed of fp16 accumulation and which training needs. "fp32"
is the rate outside the tensor cores. Where a data sheet gives the sparse figure alone, it is halved here.

To add a GPU: one entry. A name that no entry matches *in full* has no peak here, and no MFU is printed: a MIG slice,
a laptop chip or a cut-down export model is a different device from the card it is named after.
"""

import re
from dataclasses import dataclass
from typing import Any

from hardware.device import Device

# Titles and places of the documents the figures come from.
SOURCES = {
    "V100": "NVIDIA Tesla V100 datasheet, "
    "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    "T4": "NVIDIA T4 datasheet, "
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf",
    "A100": "NVIDIA A100 datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
    "A30": "NVIDIA A30 datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/"
    "a30-datasheet.pdf",
    "A10": "NVIDIA A10 datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/"
    "a10-datasheet.pdf",
    "GA102": "NVIDIA Ampere GA102 GPU architecture whitepaper, "
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    "Ada": "NVIDIA Ada GPU architecture whitepaper, "
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    "L4": "NVIDIA L4 datasheet, https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet",
    "L40S": "NVIDIA L40S datasheet, https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413",
    "H100": "NVIDIA H100 datasheet, https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet, "
    "and the Hopper architecture whitepaper, https://resources.nvidia.com/en-us-tensor-core",
    "H200": "NVIDIA H200 datasheet, https://resources.nvidia.com/en-us-data-center-overview-mc/"
    "en-us-data-center-overview/hpc-datasheet-sc23-h200",
    "RTX Blackwell": "NVIDIA RTX Blackwell GPU architecture whitepaper, https://images.nvidia.com/aem-dam/Solutions/"
    "geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
    "3070 Laptop": "40 SMs at the 1.62 GHz boost clock of https://www.nvidia.com/en-us/geforce/laptops/compare/ times "
    "the operations per SM and clock of the Ampere GA102 GPU architecture whitepaper",
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One GPU's data sheet.

    Args:
        pattern: regular expression that the whole device name must match, "NVIDIA" or "Tesla" before it being optional.
        memory_gib: nominal memory; tells cards apart that share a name.
        tflops: dense peak by number format, TFLOP/s; a format the GPU lacks is absent.
        bandwidth_gbps: memory bandwidth, GB/s (1e9 bytes per second).
        source: title and place of the document.
    """

    pattern: str
    memory_gib: int
    tflops: dict[str, float]
    bandwidth_gbps: float
    source: str


def _spec(pattern: str, memory_gib: int, bandwidth_gbps: float, source: str, **tflops: float) -> Spec:
    return Spec(
        pattern=pattern,
        memory_gib=memory_gib,
        tflops=tflops,
        bandwidth_gbps=bandwidth_gbps,
        source=SOURCES[source],
    )


SPECS: tuple[Spec, ...] = (
    # Volta and Turing: no bf16, no tf32.
    _spec(r"V100-SXM2-16GB", 16, 900, "V100", fp32=15.7, fp16=125),
    _spec(r"V100-SXM2-32GB", 32, 900, "V100", fp32=15.7, fp16=125),
    _spec(r"T4", 16, 320, "T4", fp32=8.1, fp16=65),
    # Ampere
    _spec(r"A100-SXM4-40GB", 40, 1555, "A100", fp32=19.5, tf32=156, fp16=312, bf16=312),
    _spec(r"A100-SXM4-80GB", 80, 2039, "A100", fp32=19.5, tf32=156, fp16=312, bf16=312),
    _spec(r"A100-PCIE-40GB", 40, 1555, "A100", fp32=19.5, tf32=156, fp16=312, bf16=312),
    _spec(r"A100 80GB PCIe", 80, 1935, "A100", fp32=19.5, tf32=156, fp16=312, bf16=312),
    _spec(r"A30", 24, 933, "A30", fp32=10.3, tf32=82, fp16=165, bf16=165),
    _spec(r"A10", 24, 600, "A10", fp32=31.2, tf32=62.5, fp16=125, bf16=125),
    _spec(r"GeForce RTX 3070 Laptop GPU", 8, 448, "3070 Laptop", fp32=16.6, tf32=16.6, fp16=33.2, bf16=33.2),
    _spec(r"GeForce RTX 3070", 8, 448, "GA102", fp32=20.3, tf32=20.3, fp16=40.6, bf16=40.6),
    _spec(r"GeForce RTX 3080", 10, 760, "GA102", fp32=29.8, tf32=29.8, fp16=59.5, bf16=59.5),
    _spec(r"GeForce RTX 3090", 24, 936, "GA102", fp32=35.6, tf32=35.6, fp16=71.0, bf16=71.0),
    # Ada
    _spec(r"L4", 24, 300, "L4", fp32=30.3, tf32=60, fp16=121, bf16=121, fp8=242.5),
    _spec(r"L40S", 48, 864, "L40S", fp32=91.6, tf32=183, fp16=362.05, bf16=362.05, fp8=733),
    _spec(r"GeForce RTX 4080", 16, 716.8, "Ada", fp32=48.7, tf32=48.7, fp16=97.5, bf16=97.5, fp8=194.9),
    _spec(r"GeForce RTX 4090", 24, 1008, "Ada", fp32=82.6, tf32=82.6, fp16=165.2, bf16=165.2, fp8=330.3),
    # Hopper: "H100 80GB HBM3" is the SXM module
    _spec(r"H100 80GB HBM3", 80, 3350, "H100", fp32=66.9, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1978.9),
    _spec(r"H100 PCIe", 80, 2000, "H100", fp32=51.2, tf32=378, fp16=756, bf16=756, fp8=1513),
    _spec(r"H100 NVL", 94, 3900, "H100", fp32=60, tf32=417.5, fp16=835.5, bf16=835.5, fp8=1670.5),
    _spec(r"H200", 141, 4800, "H200", fp32=66.9, tf32=494.7, fp16=989.4, bf16=989.4, fp8=1978.9),
    _spec(r"H200 NVL", 141, 4800, "H200", fp32=60, tf32=417.5, fp16=835.5, bf16=835.5, fp8=1670.5),
    # Blackwell
    _spec(r"GeForce RTX 5080", 16, 960, "RTX Blackwell", fp32=56.3, tf32=56.3, fp16=112.6, bf16=112.6, fp8=225.1),
    _spec(r"GeForce RTX 5090", 32, 1792, "RTX Blackwell", fp32=104.8, tf32=104.8, fp16=209.5, bf16=209.5, fp8=419),
)


def lookup(name: str, memory_bytes: int | None = None) -> Spec | None:
    """The data sheet of a GPU, or None: better no peak than the peak of a card that is nearly this one.

    Args:
        name: as torch or nvidia-smi reports it.
        memory_bytes: where known, must agree with the card's, so that a slice or a variant of the same name is told
            apart (error correction and the driver may take up to an eighth).
    """
    for spec in SPECS:
        if re.fullmatch(rf"((NVIDIA|Tesla) )?{spec.pattern}", name.strip()):
            share = 1.0 if memory_bytes is None else memory_bytes / (spec.memory_gib * 2**30)
            return spec if 7 / 8 <= share <= 1.02 else None
    return None


def datasheet_peaks(device: Device) -> dict[str, Any] | None:
    """The data sheet as plain JSON values, in the shape of `hardware.peaks.measured_peaks`.

    Returns:
        {"tflops": {format: TFLOP/s}, "bandwidth_gbps": GB/s, "source": text}, or None where the device is not listed.
    """
    spec = lookup(device.name, device.memory_bytes) if device.kind == "cuda" else None
    if spec is None:
        return None
    return {"tflops": dict(spec.tflops), "bandwidth_gbps": spec.bandwidth_gbps, "source": spec.source}
