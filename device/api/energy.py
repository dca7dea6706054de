"""Joules by rail, from the power monitors of a Jetson's board.

Energy a token is the rail's joules over ``edgekit_generation_tokens_total``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from device.telemetry.sensors.ina3221 import Rail, find_rails

INTERVAL_S: Final = 1.0
"""Between two readings; each takes some I2C transfers a rail."""
MAX_GAP_S: Final = 10.0
"""After a longer pause (the machine slept) nothing is known of what was between."""


def readable_rails(root: Path = Path("/")) -> list[Rail]:
    """Return the rails that have a power to read; none on machines without a monitor.

    Args:
        root: Where ``sys`` is.
    """
    return [rail for rail in find_rails(root) if rail.volts.exists() and rail.amperes.exists()]


class Energy(Collector):
    """Integrates the power of rails over time (trapezoids).

    Args:
        rails: What is read.
    """

    def __init__(self, rails: list[Rail]) -> None:
        self._rails = rails
        self._joules = dict.fromkeys((rail.name for rail in rails), 0.0)
        self._last: dict[str, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def start(self) -> None:
        """Begin to read, in a thread of its own: a transfer on I2C takes its time."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def sample(self, now_s: float) -> None:
        """Read every rail once.

        Args:
            now_s: Seconds from any start, never going back.
        """
        for rail in self._rails:
            power = rail.microwatts()
            if power is None:
                self._last.pop(rail.name, None)
                continue
            watts = max(power, 0) * 1e-6  # noise around none is below 0
            before_s, before = self._last.get(rail.name, (now_s, watts))
            if now_s - before_s <= MAX_GAP_S:
                self._joules[rail.name] += (now_s - before_s) * (before + watts) / 2
            self._last[rail.name] = (now_s, watts)

    def collect(self) -> Iterator[Metric]:
        """Yield the counter."""
        family = CounterMetricFamily(
            "edgekit_energy_joules", "Energy that a rail has taken.", labels=("rail",)
        )
        for rail, joules in self._joules.items():
            family.add_metric((rail,), joules)
        yield family

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.sample(time.monotonic())
