"""What was seen of a device between two moments."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What was seen between two moments.

    Args:
        values: medians by name with unit: sm_clock_mhz, memory_clock_mhz, power_w, temperature_c on a GPU;
            steal_percent, throttled_ms on a processor. Empty where nothing could be seen.
        slowdown: reasons that call for measuring again.
        capped: reasons that belong to how the device is set up; recorded.
        notes: anything else worth a flag, in words.
    """

    values: dict[str, float] = field(default_factory=dict)
    slowdown: frozenset[str] = frozenset()
    capped: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
