import time
from pathlib import Path

import pytest

from hardware import kernel_times
from hardware.device import Device
from hardware.monitor import Monitor
from hardware.telemetry import Telemetry

CPU = Device(kind="cpu", name="x", slug="x", memory_bytes=2**33, capability=None, count=1)


def wait_for(condition, seconds: float = 20.0):
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline, "the condition never came true"
        time.sleep(0.002)


class Kernel:
    """A fake /proc and /sys/fs/cgroup whose totals the test moves."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroup = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroup.mkdir()
        self.ticks(idle=0, steal=0)

    def ticks(self, *, idle: int, steal: int) -> None:
        # user nice system idle iowait irq softirq steal guest guest_nice
        guest = 7 * (idle + steal)  # a copy of time that is in user already; counting it twice would dilute the share
        (self.proc / "stat").write_text(f"cpu  100 0 0 {idle} 0 0 0 {steal} {guest} 0\ncpu0 1 2 3\n")

    def groups(self, text: str) -> None:
        (self.proc / "self" / "cgroup").write_text(text)

    def cpu_stat(self, folder: str, text: str) -> None:
        (self.cgroup / folder).mkdir(parents=True, exist_ok=True)
        (self.cgroup / folder / "cpu.stat").write_text(text)

    def monitor(self) -> Monitor:
        return Monitor(CPU, proc=self.proc, cgroup=self.cgroup)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_times, "INTERVAL_S", 1000.0)  # the test alone decides when totals are read
    return Kernel(tmp_path)


def test_steal_is_a_share_of_all_time_and_noted_above_two_percent(kernel):
    with kernel.monitor() as monitor:
        t0 = time.perf_counter()
        kernel.ticks(idle=90, steal=10)
        t1 = time.perf_counter()
        busy = monitor.between(t0, t1)
        assert busy.values["steal_percent"] == pytest.approx(10.0)
        assert busy.notes == ("steal time above 2 %",) and not busy.slowdown
        t2 = time.perf_counter()
        kernel.ticks(idle=189, steal=11)
        calm = monitor.between(t2, time.perf_counter())
        assert calm.values["steal_percent"] == pytest.approx(1.0) and not calm.notes
        assert monitor.between(t0, t1) == busy, "an earlier block is still answered from its own samples"
    assert monitor.problem is None


def test_one_tick_of_steal_proves_nothing(kernel):
    with kernel.monitor() as monitor:
        t0 = time.perf_counter()
        kernel.ticks(idle=9, steal=1)
        telemetry = monitor.between(t0, time.perf_counter())
    assert telemetry.values["steal_percent"] == pytest.approx(10.0) and not telemetry.notes


@pytest.mark.parametrize(
    ("groups", "folder", "before", "after"),
    [
        ("0::/job\n", "job", "nr_throttled 3\nthrottled_usec 1000\n", "nr_throttled 5\nthrottled_usec 8500\n"),
        ("0::/job/step\n", "job", "nr_throttled 0\nthrottled_usec 0\n", "nr_throttled 1\nthrottled_usec 7500\n"),
        ("0::/not/visible/here\n", ".", "nr_throttled 0\nthrottled_usec 0\n", "nr_throttled 1\nthrottled_usec 7500\n"),
        (
            "3:cpu,cpuacct:/job\n1:name=systemd:/\n",
            "cpu,cpuacct/job",
            "nr_periods 1\nnr_throttled 0\nthrottled_time 0\n",
            "nr_periods 2\nnr_throttled 1\nthrottled_time 7500000\n",
        ),
        (
            "4:memory:/m\n1:cpu:/job\n0::/\n",
            "cpu/job",
            "nr_throttled 0\nthrottled_time 0\n",
            "nr_throttled 1\nthrottled_time 7500000\n",
        ),
    ],
    ids=["v2", "v2 quota on the parent", "v2 in a container", "v1", "v1 beside v2"],
)
def test_a_used_up_quota_is_a_slowdown(kernel, groups, folder, before, after):
    kernel.groups(groups)
    kernel.cpu_stat(folder.split("/")[0], "nr_periods 0\n")  # the root of a mount counts no throttling
    kernel.cpu_stat(".", "usage_usec 1\n")
    kernel.cpu_stat(folder, before)
    with kernel.monitor() as monitor:
        t0 = time.perf_counter()
        calm = monitor.between(t0, time.perf_counter())
        assert not calm.slowdown and calm.values["throttled_ms"] == 0
        t0 = time.perf_counter()
        kernel.cpu_stat(folder, after)
        stopped = monitor.between(t0, time.perf_counter())
    assert stopped.slowdown == {"processor quota used up"}
    assert stopped.values["throttled_ms"] == pytest.approx(7.5)


def test_absent_and_broken_kernel_files(tmp_path, kernel):
    with Monitor(CPU, proc=tmp_path / "nothing", cgroup=tmp_path / "nothing") as monitor:
        assert monitor.between(0.0, 1.0) == Telemetry() and "nothing to sample" in monitor.problem
    (kernel.proc / "stat").write_text("cpu garbage\n")
    with kernel.monitor() as monitor:
        assert monitor.between(0.0, 1.0) == Telemetry() and "cannot be read" in monitor.problem
    (kernel.proc / "stat").write_text("cpu 1 2 3\n")
    with kernel.monitor() as monitor:
        assert monitor.between(0.0, 1.0) == Telemetry() and "no column for steal" in monitor.problem


def test_the_background_thread_samples_by_itself(kernel, monkeypatch):
    monkeypatch.setattr(kernel_times, "INTERVAL_S", 0.001)
    with kernel.monitor() as monitor:
        wait_for(lambda: len(monitor._source._samples) >= 5)
    assert not monitor._source._thread.is_alive()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc here")
def test_watching_this_processor_costs_less_than_a_thousandth_of_a_core():
    with Monitor(CPU) as monitor:
        readings = 200
        began = time.thread_time()
        for _ in range(readings):
            assert monitor._source._sample()
        seconds = (time.thread_time() - began) / readings
        t = time.perf_counter()
        assert set(monitor.between(t, t).values) == {"steal_percent", "throttled_ms"}
    assert seconds / kernel_times.INTERVAL_S < 1e-3
