"""Update all parameters in a few kernels instead of a dozen per tensor.

AdamW one tensor at a time launches about ten small kernels for each of GPT-2's 148 tensors, and each launch costs more than
its work. `fused=True` updates many tensors per kernel, reading and writing every number once; the gradient norm for clipping
is computed over all tensors together as well. The arithmetic is the same. It matters most at small micro-batches, where the
optimizer is a large part of a step.
"""

from hardware import Device
from optim_ladder.rung import REORDERED, Rung


def unavailable(device: Device, workload: object) -> str | None:
    if device.kind not in ("cuda", "cpu", "mps"):
        return f"PyTorch has no fused AdamW for {device.kind}"
    return None


RUNG = Rung(
    name="fused_adamw",
    title="fused AdamW",
    source="https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html",
    essay=__doc__,
    drift=REORDERED,
    slot="optimizer",
    unavailable=unavailable,
    optimizer={"foreach": None, "fused": True},
)
