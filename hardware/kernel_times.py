"""Time that a processor was kept from us, from the totals in two small files of the Linux kernel.

*Steal* is time the hypervisor gave to somebody else; *throttling* is a container's quota stopping the process. A thread
reads both five times a second. One reading takes 0.02 ms: 0.01 % of one core.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hardware.telemetry import Telemetry

INTERVAL_S = 0.2
STEAL_NOTE_PERCENT = 2.0


@dataclass(frozen=True)
class Totals:
    """The kernel's running totals at one moment."""

    moment: float
    steal_ticks: int
    all_ticks: int
    throttled_count: int
    throttled_ms: float


class KernelTimes:
    """Reads /proc/stat and the cpu.stat files of the control groups this process is in."""

    def __init__(self, proc: Path, cgroup: Path) -> None:
        self.problem: str | None = None
        self._stat = proc / "stat"
        self._cpu_stats = list(_cpu_stat_files(proc, cgroup))
        self._samples: list[Totals] = []
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        if self._sample():
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S) and self._sample():
            pass

    def _sample(self) -> bool:
        try:
            with open(self._stat) as file:
                # cpu user nice system idle iowait irq softirq steal guest guest_nice; guest is counted in user already
                ticks = [int(number) for number in file.readline().split()[1:9]]
            if len(ticks) < 8:
                raise ValueError("no column for steal")
            throttled = [_throttling(path.read_text()) for path in self._cpu_stats]
        except (OSError, ValueError) as error:
            self.problem = f"the kernel's processor times cannot be read: {error}"
            return False
        count, ms = (sum(column) for column in zip((0, 0.0), *throttled, strict=True))
        self._samples.append(Totals(time.perf_counter(), ticks[7], sum(ticks), int(count), ms))
        return True

    def forget(self, moment: float) -> None:
        """Lets go of what was seen earlier, but for the last reading."""
        del self._samples[: max(0, sum(s.moment <= moment for s in self._samples) - 1)]

    def between(self, t0: float, t1: float) -> Telemetry:
        # The counters are totals: take the last reading before and the first after, making one now if need be.
        if self.problem is None and self._samples and self._samples[-1].moment < t1:
            self._sample()
        samples = self._samples[:]
        before = [s for s in samples if s.moment <= t0] or samples[:1]
        after = [s for s in samples if s.moment >= t1]
        if not before or not after:
            return Telemetry()
        a, b = before[-1], after[0]
        steal, ticks = b.steal_ticks - a.steal_ticks, b.all_ticks - a.all_ticks
        percent = 100 * steal / ticks if ticks else 0.0
        # One tick is 10 ms, a fifth of a short block: a single one proves nothing.
        noted = percent > STEAL_NOTE_PERCENT and steal > 1
        return Telemetry(
            values={"steal_percent": percent, "throttled_ms": b.throttled_ms - a.throttled_ms},
            slowdown=frozenset({"processor quota used up"} if b.throttled_count > a.throttled_count else ()),
            notes=(f"steal time above {STEAL_NOTE_PERCENT:g} %",) if noted else (),
        )


def _throttling(text: str) -> tuple[int, float]:
    """Times stopped by the quota, and milliseconds of it, from a cpu.stat of either version."""
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    ms = int(fields.get("throttled_usec", 0)) / 1e3 + int(fields.get("throttled_time", 0)) / 1e6  # v2: us, v1: ns
    return int(fields.get("nr_throttled", 0)), ms


def _cpu_stat_files(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Every cpu.stat that counts throttling, from this process's control group up: a quota may sit on any ancestor.

    In a container the path from /proc may not exist below the mount: the mount's own root is the container's group.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2, alone or beside version 1
            mounts = [cgroup, cgroup / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [cgroup / controllers, cgroup / "cpu"]
        else:
            continue
        mount = next((m for m in mounts if (m / "cpu.stat").exists() or (m / "cgroup.procs").exists()), None)
        if mount is None:
            continue
        group = mount / path.strip("/")
        for folder in [group, *group.parents] if group.is_relative_to(mount) else [mount]:
            try:
                if "nr_throttled" in (folder / "cpu.stat").read_text():
                    yield folder / "cpu.stat"
            except OSError:
                pass  # no such controller at this level, or not ours to read
            if folder == mount:
                break
