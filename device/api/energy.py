"""Joules by rail, from the power monitor of a Jetson's board.

An INA3221 stands in hwmon: ``in{1..3}_label`` names a rail, ``in{n}_input`` is mV,
``curr{n}_input`` mA; inputs beyond 3 are shunt voltages and their sums. Source: kernel.org,
Documentation/hwmon/ina3221.rst; rails of the AGX Orin: ``VDD_GPU_SOC``, ``VDD_CPU_CV``,
``VIN_SYS_5V0``. Energy a token is the rail's joules over ``edgekit_generation_tokens_total``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

INTERVAL_S: Final = 1.0
"""Between two readings; each takes some I2C transfers a rail."""
MAX_GAP_S: Final = 10.0
"""After a longer pause (the machine slept) nothing is known of what was between."""
CHANNELS: Final = 3


@dataclass(frozen=True, slots=True)
class Rail:
    """One rail.

    Attributes:
        name: Its label.
        volts: File of its millivolts.
        amperes: File of its milliamperes.
    """

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float | None:
        """Return its power; None while it cannot be read. Noise around none is below 0: it is 0."""
        try:
            millivolts, milliamperes = int(self.volts.read_text()), int(self.amperes.read_text())
        except (OSError, ValueError):  # a channel that is switched off answers ENODATA
            return None
        return max(millivolts * milliamperes, 0) * 1e-6


def find_rails(root: Path = Path("/")) -> list[Rail]:
    """Return the rails of a machine's INA3221 monitors; none on other machines.

    Args:
        root: Where ``sys`` is.
    """
    found = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(folder / "name") != "ina3221":
            continue
        for channel in range(1, CHANNELS + 1):
            name = _text(folder / f"in{channel}_label")
            rail = Rail(name, folder / f"in{channel}_input", folder / f"curr{channel}_input")
            if name and rail.volts.exists() and rail.amperes.exists():
                found.append(rail)
    return found


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
            watts = rail.watts()
            if watts is None:
                self._last.pop(rail.name, None)
                continue
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


def _text(path: Path) -> str:
    """Return a file's text; empty if it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
