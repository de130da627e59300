import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hardware import nvidia_smi as nvidia_smi_module
from hardware.device import Device
from hardware.monitor import Monitor
from hardware.nvidia_smi import CAP_BITS, SLOWDOWN_BITS
from hardware.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
GPU = Device(kind="cuda", name="x", slug="x", memory_bytes=2**33, capability=(9, 0), count=1)


def wait_for(condition, seconds: float = 20.0):
    deadline = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < deadline, "the condition never came true"
        time.sleep(0.002)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a shell script named nvidia-smi first on PATH; its arguments are kept in the file `arguments`."""
    monkeypatch.setattr(nvidia_smi_module, "gpu_id", lambda index: f"GPU-{index}")

    def install(body: str) -> Path:
        script = tmp_path / "nvidia-smi"
        script.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/arguments"\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path

    return install


def run_until_the_child_ends() -> tuple[Telemetry, str]:
    t0 = time.perf_counter()
    with Monitor(GPU) as monitor:
        wait_for(lambda: monitor.problem)
        return monitor.between(t0, time.perf_counter()), monitor.problem


def test_values_are_medians_and_reasons_are_told_apart(nvidia_smi):
    folder = nvidia_smi(
        "echo '1000, 2619, 300.5, 60, 0x0000000000000004'\n"
        "echo '1400, 2619, 320.5, 61, 0x0000000000000001'\n"
        "echo '1980, 2619, 700.0, 62, 0x0000000000000028'\n"
        "exit 3"
    )
    telemetry, problem = run_until_the_child_ends()
    assert telemetry.values == {
        "sm_clock_mhz": 1400,
        "memory_clock_mhz": 2619,
        "power_w": 320.5,
        "temperature_c": 61,
    }
    assert telemetry.slowdown == {"hardware slowdown", "software thermal slowdown"}
    assert telemetry.capped == {"power cap"}
    assert "exit status 3" in problem
    arguments = (folder / "arguments").read_text()
    assert "--id=GPU-0" in arguments and "--loop-ms=100" in arguments
    assert "clocks_event_reasons.active" in arguments and "clocks_throttle_reasons" not in arguments


@pytest.mark.parametrize(("bit", "name"), [*SLOWDOWN_BITS.items(), *CAP_BITS.items()])
def test_every_reason_bit(nvidia_smi, bit, name):
    nvidia_smi(f"echo '1000, 2619, 300.5, 60, 0x{bit:016x}'")
    telemetry, _ = run_until_the_child_ends()
    assert telemetry.slowdown == ({name} if bit in SLOWDOWN_BITS else set())
    assert telemetry.capped == ({name} if bit in CAP_BITS else set())


def test_the_bits_are_those_of_nvml():
    assert set(SLOWDOWN_BITS) == {0x08, 0x20, 0x40, 0x80} and set(CAP_BITS) == {0x02, 0x04, 0x10, 0x100}


def test_missing_values_and_garbage_are_left_out(nvidia_smi):
    nvidia_smi(
        "echo 'Timestamp: something else'\n"
        "echo '1000, [N/A], [Not Supported], 60, [N/A]'\n"
        "echo 'a, b'\n"
        "echo '1000, [N/A], [Not Supported], 62, 0x0000000000000004'\n"
        "echo\n"
        "echo ', , , , ,'"
    )
    telemetry, _ = run_until_the_child_ends()
    assert telemetry.values == {"sm_clock_mhz": 1000, "temperature_c": 61}
    assert telemetry.capped == {"power cap"} and not telemetry.slowdown


def test_an_older_driver_is_asked_by_the_older_name(nvidia_smi):
    folder = nvidia_smi(
        'case "$*" in\n'
        "*clocks_event_reasons*) echo 'Field \"clocks_event_reasons.active\" is not a valid field.'; exit 2;;\n"
        "esac\n"
        "echo '1000, 2619, 300.5, 60, 0x0000000000000080'"
    )
    telemetry, _ = run_until_the_child_ends()
    assert telemetry.slowdown == {"hardware power brake"}
    assert len((folder / "arguments").read_text().splitlines()) == 2


def test_a_failing_nvidia_smi_says_so_in_its_own_words(nvidia_smi):
    nvidia_smi("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.' >&2; exit 9")
    telemetry, problem = run_until_the_child_ends()
    assert telemetry == Telemetry()
    assert "exit status 9" in problem and "could not communicate" in problem


def test_without_nvidia_smi_there_is_a_problem_and_nothing_else(nvidia_smi, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with Monitor(GPU) as monitor:
        assert "not on PATH" in monitor.problem
        assert monitor.between(0.0, 1.0) == Telemetry()


def test_an_nvidia_smi_that_cannot_be_run(nvidia_smi):
    folder = nvidia_smi("")
    (folder / "nvidia-smi").write_text("#!/no/such/interpreter\n")
    telemetry, problem = run_until_the_child_ends()
    assert telemetry == Telemetry() and "cannot be started" in problem


def test_leaving_ends_a_running_child_without_a_problem(nvidia_smi):
    nvidia_smi("echo '1000, 2619, 300.5, 60, 0x0'; exec sleep 1000")
    t0 = time.perf_counter()
    with Monitor(GPU) as monitor:
        wait_for(lambda: monitor.between(t0, time.perf_counter()).values)
    assert monitor.problem is None
    assert monitor._source._child.returncode == -signal.SIGTERM


def test_a_killed_process_leaves_no_child_behind(nvidia_smi):
    folder = nvidia_smi(
        'echo $$ > "$(dirname "$0")/pid"\nwhile true; do echo "1000, 2619, 300.5, 60, 0x0" || exit; done'
    )
    code = (
        "import os, signal, time\n"
        "from hardware import monitor, nvidia_smi\n"
        "from hardware.device import Device\n"
        "nvidia_smi.gpu_id = lambda index: '0'\n"
        "d = Device(kind='cuda', name='x', slug='x', memory_bytes=1, capability=(9, 0), count=1)\n"
        "with monitor.Monitor(d) as m:\n"
        "    while not m.between(0, 1e9).values: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    child = int((folder / "pid").read_text())

    def gone() -> bool:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{child}/stat")  # dead, but not yet collected by its adoptive parent
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    wait_for(gone)


def test_a_block_without_a_sample_of_its_own_takes_its_neighbours(nvidia_smi):
    monitor = Monitor(GPU)
    source = monitor._source
    source._samples += [(10.0, {"power_w": 100.0}, 0), (10.1, {"power_w": 200.0}, 0x40), (99.0, {"power_w": 9.0}, 0)]
    assert monitor.between(9.95, 10.05).values == {"power_w": 100.0}
    near = monitor.between(10.02, 10.07)
    assert near.values == {"power_w": 150.0} and near.slowdown == {"hardware thermal slowdown"}
    assert monitor.between(50.0, 60.0) == Telemetry()
    with pytest.raises(ValueError, match="t1 is 1.0, before t0=2.0"):
        monitor.between(2.0, 1.0)
