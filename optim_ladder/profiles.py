"""The workload each device is measured with: GPT-2 124M at T = 1024 on a GPU, a small model on a CPU.

A profile is found by the device's name. The micro-batch is the one the card is usually trained with; a setting that does
not fit it (the fp32 baseline, mostly) runs the same step in smaller pieces and is labelled so. A GPU without a profile gets
the largest power of two whose fp32 baseline fits its memory.
"""

import re

from hardware import Device
from optim_ladder.ladder import unknown
from optim_ladder.settings import Workload

# name -> (pattern for the device's name, micro-batch)
GPU_PROFILES: dict[str, tuple[str, int]] = {
    "rtx3070-laptop": (r"RTX 3070 Laptop", 2),
    "rtx4090": (r"RTX 4090(?! Laptop)", 16),
    "rtx5090": (r"RTX 5090(?! Laptop)", 32),
    "t4": (r"\bT4\b", 4),
    "l4": (r"\bL4\b", 8),
    "a30": (r"\bA30\b", 8),
    "a100": (r"\bA100\b", 32),
    "h100": (r"\bH100\b", 64),
    "h200": (r"\bH200\b", 64),
}

# Small enough that the whole ladder takes minutes on two cores, large enough that a step is real work in every part.
CPU_WORKLOAD = Workload(model="nano", vocab_size=8192, micro_batch=1, seq_len=512)

PROFILES = ("cpu", *GPU_PROFILES, "auto")

# Bytes the fp32 baseline takes on GPT-2 124M at T = 1024: weights, gradients and AdamW's two moments, then activations per
# sequence (68·T·C per layer, 8·H·T² for scores and softmax, and three copies of the logits). Korthikanti et al. (2022), §4.1.
FIXED_BYTES = 2.5e9
BYTES_PER_SEQUENCE = 1.9e9


def profile(device: Device, name: str | None = None) -> tuple[str, Workload]:
    """The profile's name and workload for a device.

    Args:
        device: what to measure.
        name: a profile to use instead of the one the device's name says.

    Raises:
        ValueError: no profile has that name; the choices are named.
    """
    if name is not None and name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    if name is None:
        name = "cpu" if device.kind == "cpu" else detect(device)
    if name == "cpu":
        return name, CPU_WORKLOAD
    if name == "auto":
        return name, Workload(micro_batch=fitting_micro_batch(device.memory_bytes))
    return name, Workload(micro_batch=GPU_PROFILES[name][1])


def detect(device: Device) -> str:
    """The profile that a device's name matches, "auto" for none."""
    if "MIG" in device.name:  # a slice has the full card's name and a part of its memory
        return "auto"
    return next((name for name, (pattern, _) in GPU_PROFILES.items() if re.search(pattern, device.name)), "auto")


def fitting_micro_batch(memory_bytes: int) -> int:
    """Largest power of two, at most 64, whose fp32 baseline fits."""
    sequences = max(1, int((memory_bytes - FIXED_BYTES) / BYTES_PER_SEQUENCE))
    return min(64, 1 << (sequences.bit_length() - 1))
