"""Clocks, power, temperature and throttle reasons of an NVIDIA GPU, from one long-running `nvidia-smi`.

The child prints a line ten times a second; a thread that sleeps in `read` keeps the lines. No NVML binding is needed,
and the work of asking the driver is done in another process.
"""

import shutil
import statistics
import subprocess
import threading
import time

from hardware.telemetry import Telemetry

# Bits of nvidia-smi's clocks_event_reasons.active (clocks_throttle_reasons.active before driver 535).
# Source: NVML API reference, nvmlClocksEventReasons,
# https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
SLOWDOWN_BITS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
CAP_BITS = {0x02: "application clocks", 0x04: "power cap", 0x10: "sync boost", 0x100: "display clocks"}

FIELDS = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
}
REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer drivers first

INTERVAL_S = 0.1


def gpu_id(index: int) -> str:
    """What nvidia-smi calls a visible GPU: its UUID, which holds whatever CUDA_VISIBLE_DEVICES hides; or its number."""
    import torch

    try:
        return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    except (AttributeError, AssertionError, RuntimeError):
        return str(index)


class NvidiaSmi:
    """Reads lines of one long-running nvidia-smi. A sample is (moment, values, reason bits)."""

    def __init__(self, index: int) -> None:
        self.problem: str | None = None
        self._gpu = gpu_id(index)
        self._samples: list[tuple[float, dict[str, float], int]] = []
        self._child: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._lock = threading.Lock()  # between starting the next child and being told to stop

    def start(self) -> None:
        program = shutil.which("nvidia-smi")
        if program is None:
            self.problem = "nvidia-smi is not on PATH, so clocks and throttling are unknown"
            return
        self._thread = threading.Thread(target=self._read, args=(program,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            if self._child:
                self._child.terminate()
        if self._thread:
            self._thread.join(timeout=5)

    def _read(self, program: str) -> None:
        try:
            self.problem = self._read_until_the_end(program)
        except OSError as error:  # on PATH, yet cannot be run
            self.problem = f"nvidia-smi cannot be started: {error.strerror}"

    def _read_until_the_end(self, program: str) -> str | None:
        """Keeps samples until the child ends; returns why it ended, or None when told to stop."""
        complaint = ""
        for reasons in REASON_FIELDS:
            with self._lock:
                if self._stopping:
                    return None
                # A pipe, not a terminal: should this process be killed, the child dies at its next line.
                self._child = subprocess.Popen(
                    [
                        program,
                        f"--query-gpu={','.join([*FIELDS.values(), reasons])}",
                        "--format=csv,noheader,nounits",
                        f"--loop-ms={round(INTERVAL_S * 1e3)}",
                        f"--id={self._gpu}",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            with self._child as child:
                assert child.stdout is not None
                for line in child.stdout:
                    if sample := _parse_line(line):
                        self._samples.append((time.perf_counter(), *sample))
                    elif line.strip():
                        complaint = line.strip()
            if self._stopping:
                return None
            if self._samples:
                break  # this field name is understood; the child ended for another reason
        why = f": {complaint}" if complaint else ""
        return f"nvidia-smi ended by itself with exit status {self._child.returncode}{why}"

    def forget(self, moment: float) -> None:
        """Lets go of what was seen earlier, but for the last reading."""
        del self._samples[: max(0, sum(s[0] <= moment for s in self._samples) - 1)]

    def between(self, t0: float, t1: float) -> Telemetry:
        samples = self._samples[:]
        inside = [s for s in samples if t0 <= s[0] <= t1]
        if not inside:  # a block shorter than the interval: its neighbours are the best that is known
            near = 2 * INTERVAL_S
            inside = [s for s in samples if t0 - near <= s[0] <= t1 + near]
        bits = 0
        for _, _, reasons in inside:
            bits |= reasons
        seen = {name: [values[name] for _, values, _ in inside if name in values] for name in FIELDS}
        return Telemetry(
            values={name: statistics.median(numbers) for name, numbers in seen.items() if numbers},
            slowdown=frozenset(name for bit, name in SLOWDOWN_BITS.items() if bits & bit),
            capped=frozenset(name for bit, name in CAP_BITS.items() if bits & bit),
        )


def _parse_line(line: str) -> tuple[dict[str, float], int] | None:
    """Values and reason bits of one line, or None for a line of anything else. "[N/A]" leaves its value out."""
    *numbers, reasons = (part.strip() for part in line.split(","))
    if len(numbers) != len(FIELDS):
        return None
    values = {}
    for name, text in zip(FIELDS, numbers, strict=True):
        try:
            values[name] = float(text)
        except ValueError:
            continue
    try:
        bits = int(reasons, 16)
    except ValueError:
        bits = 0
    return (values, bits) if values else None
