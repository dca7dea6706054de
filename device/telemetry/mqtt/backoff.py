"""When to connect again: exponential windows with full jitter.

A time is drawn evenly from the whole window, so that a fleet that a broker's restart has cut off
at one instant comes back spread out, and more so with every failure (Brooker, "Exponential Backoff
And Jitter", AWS Architecture Blog, 2015). paho's own reconnect doubles without any jitter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from device.telemetry.mqtt.reasons import BUSY, CONFIG


@dataclass(frozen=True, slots=True)
class Windows:
    """Sizes of the windows in seconds.

    Attributes:
        first_s: Of the first try.
        busy_s: Of the first try after the broker sent everyone away.
        longest_s: None is larger.
        steady_s: A connection that held that long was a success; one that did not counts on.
    """

    first_s: float = 5.0
    busy_s: float = 60.0
    longest_s: float = 300.0
    steady_s: float = 60.0


class Backoff:
    """Draws waiting times.

    Args:
        windows: Their sizes.
        chance: Source of randomness; one of its own a device.
    """

    def __init__(self, windows: Windows, chance: random.Random) -> None:
        self._windows = windows
        self._chance = chance
        self._failures = 0

    def after(self, kind: str, held_s: float = 0.0) -> float:
        """Return how many seconds to wait.

        Args:
            kind: ``device.telemetry.mqtt.reasons``'s, of how the last connection ended.
            held_s: How long it had been up; 0 for one that never was.
        """
        if held_s >= self._windows.steady_s:
            self._failures = 0
        longest_s = self._windows.longest_s
        if kind == CONFIG:
            # Nothing changes by itself, so the window has a lower end, too.
            return self._chance.uniform(longest_s / 2, longest_s)
        first_s = self._windows.busy_s if kind == BUSY else self._windows.first_s
        window_s = min(longest_s, first_s * 2 ** min(self._failures, 30))
        self._failures += 1
        return self._chance.uniform(0.0, window_s)
