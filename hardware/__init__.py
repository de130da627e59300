"""What this device is, what it could do at best, how it fares under load, and what surrounds it.

Nothing here imports torch until a function needs it, so the command line and the charts stay quick.
"""

from hardware.device import Device, detect
from hardware.environment import capture, source_hash
from hardware.memory import peak_memory
from hardware.monitor import Monitor
from hardware.peaks import measured_peaks
from hardware.specs import SPECS, Spec, datasheet_peaks, lookup
from hardware.telemetry import Telemetry

__all__ = [
    "SPECS",
    "Device",
    "Monitor",
    "Spec",
    "Telemetry",
    "capture",
    "datasheet_peaks",
    "detect",
    "lookup",
    "measured_peaks",
    "peak_memory",
    "source_hash",
]
