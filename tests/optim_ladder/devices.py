"""Devices that tests pretend to have; nothing is run on them."""

from hardware import Device


def gpu(name: str, capability: tuple[int, int], *, memory_gib: float = 80, count: int = 1) -> Device:
    return Device(
        kind="cuda",
        name=name,
        slug=name.lower().replace(" ", "-"),
        memory_bytes=int(memory_gib * 2**30),
        capability=capability,
        count=count,
    )


H100 = gpu("NVIDIA H100 80GB HBM3", (9, 0))
T4 = gpu("Tesla T4", (7, 5), memory_gib=15)
CPU = Device(kind="cpu", name="Test CPU", slug="cpu-test", memory_bytes=2**34, capability=None, count=2)
