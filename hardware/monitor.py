"""Clocks, power, temperature and throttling, sampled in the background while a benchmark runs.

    with Monitor(device) as monitor:
        began = time.perf_counter()
        ...                                       # one block of work, ended by a synchronisation
        telemetry = monitor.between(began, time.perf_counter())

A reason to slow down is either *bad luck* (too hot, brake asserted, quota used up), and then the block should be
measured again, or *the way this device is set up* (power cap, fixed clocks), which is recorded and lived with.
"""

from pathlib import Path

from hardware.device import Device
from hardware.kernel_times import KernelTimes
from hardware.nvidia_smi import NvidiaSmi
from hardware.telemetry import Telemetry


class Monitor:
    """Samples a device from `__enter__` to `__exit__`; `problem` says in words why nothing is seen, else it is None.

    Args:
        device: the device to watch.
        index: which of the visible accelerators.
        proc, cgroup: where the kernel's files are mounted.
    """

    def __init__(
        self, device: Device, *, index: int = 0, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._source: NvidiaSmi | KernelTimes | None = None
        self._no_source: str | None = None
        if device.kind == "cuda":
            self._source = NvidiaSmi(index)
        elif (proc / "stat").exists():
            self._source = KernelTimes(proc, cgroup)
        else:
            self._no_source = f"nothing to sample on this system for a device of kind {device.kind}"

    @property
    def problem(self) -> str | None:
        return self._no_source if self._source is None else self._source.problem

    def __enter__(self) -> "Monitor":
        if self._source:
            self._source.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._source:
            self._source.stop()

    def forget(self, moment: float) -> None:
        """Lets go of what was seen before a reading of `time.perf_counter`, so that a day of watching takes no memory."""
        if self._source:
            self._source.forget(moment)

    def between(self, t0: float, t1: float) -> Telemetry:
        """What was seen between two readings of `time.perf_counter`.

        Raises:
            ValueError: the moments are in the wrong order.
        """
        if t1 < t0:
            raise ValueError(f"t1 is {t1}, before t0={t0}; pass the earlier moment first")
        return self._source.between(t0, t1) if self._source else Telemetry()
