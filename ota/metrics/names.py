"""What Prometheus calls the readings of devices.

    temperature_celsius.cpu  ->  edgekit_device_temperature_celsius{tenant, device, zone="cpu"}
    cpu_mhz.policy0          ->  edgekit_device_cpu_frequency_hertz{tenant, device, cluster=...}

Names and units follow prometheus.io/docs/practices/naming: base units, ``_total`` for counters.
Each series takes one path: readings are written with their own times, under ``edgekit_device_``;
what only the cloud knows is scraped, under ``edgekit_fleet_`` and ``edgekit_ingest_``; what a
server on a device tells whoever scrapes it there has neither (``docs/serving.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from edgekit.contracts.series import SERIES, Number, split_name

PREFIX = "edgekit_device_"
OTHER_LABEL = "label"
"""What the part behind the dot is called in series that this release does not know."""
_KNOWN_READINGS = 16_384
"""Names that are remembered; devices choose them, so there is a bound."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a series is called.

    Attributes:
        name: Of the metric.
        label: Name of the series' own label; empty if it has none.
        multiply: What a reading is multiplied by.
        divide: What it is divided by then: hundredths and thousandths have no exact factor.
    """

    name: str
    label: str = ""
    multiply: int = 1
    divide: int = 1

    def value(self, reading: Number) -> float:
        """Return a reading in the metric's unit."""
        return reading * self.multiply / self.divide


_IN_OTHER_UNITS: Mapping[str, tuple[str, int, int]] = {
    "cpu_load_percent": ("cpu_load_ratio", 1, 100),
    "cpu_mhz": ("cpu_frequency_hertz", 1_000_000, 1),
    "gpu_load_percent": ("gpu_load_ratio", 1, 100),
    "gpu_mhz": ("gpu_frequency_hertz", 1_000_000, 1),
    "emc_load_percent": ("emc_load_ratio", 1, 100),
    "emc_mhz": ("emc_frequency_hertz", 1_000_000, 1),
    "power_mw": ("power_watts", 1, 1000),
    "link_rtt_ms": ("link_round_trip_seconds", 1, 1000),
    "modem_signal_percent": ("modem_signal_ratio", 1, 100),
    "uptime_s": ("uptime_seconds", 1, 1),
}
"""Series whose unit is not a base one: name, factor, divisor. dB and dBm have no base unit."""


def _metric(series: str, label: str) -> Metric:
    name, multiply, divide = _IN_OTHER_UNITS.get(series, (series, 1, 1))
    return Metric(PREFIX + name, label, multiply, divide)


METRICS: Mapping[str, Metric] = {name: _metric(name, one.label) for name, one in SERIES.items()}
"""Every series of this release."""
_TAKEN = frozenset(metric.name for metric in METRICS.values())


@lru_cache(maxsize=_KNOWN_READINGS)
def metric_of(reading: str) -> tuple[Metric, Mapping[str, str]] | None:
    """Return a reading's metric and what it adds to the labels.

    A series that only a newer agent knows keeps its name and unit, unless a known one's metric has
    that name: two units under one name would be worse than none.

    Returns:
        None if the name is taken.

    Raises:
        MessageError: It is no reading's name.
    """
    series, label = split_name(reading)
    known = METRICS.get(series)
    if known is None:
        metric = Metric(PREFIX + series, OTHER_LABEL if label else "")
        if metric.name in _TAKEN:
            return None
    else:
        # A label where none is known of is another reading, and so another series.
        metric = known
    return metric, {metric.label or OTHER_LABEL: label} if label else {}
