"""Live mode: on demand a sample at every tick is sent by itself, for some minutes at most."""

from __future__ import annotations

from device.telemetry.clock import Clock
from edgekit.contracts.telemetry import CommandNotice
from edgekit.errors import TelemetryError

LIVE_S = 300.0
"""Longest that one notice keeps it on: 60 samples, about 150 kB."""


class Live:
    """Whether it is on; it ends by itself.

    Args:
        clock: The ring's.
        longest_s: Bound of one notice.
    """

    def __init__(self, clock: Clock, longest_s: float = LIVE_S) -> None:
        self._clock, self._longest_s = clock, longest_s
        self._until_s = float("-inf")
        self.is_affordable = True

    @property
    def is_on(self) -> bool:
        """Whether samples are sent live now."""
        return self.is_affordable and self._now_s() < self._until_s

    def start(self, notice: CommandNotice) -> None:
        """Begin, or go on for longer.

        Args:
            notice: It is over when this expires, and after ``longest_s`` at the latest.

        Raises:
            TelemetryError: The day's bytes are spoken for.
        """
        if not self.is_affordable:
            raise TelemetryError("no live mode: the day's bytes are spoken for")
        for_s = self._longest_s
        if self._clock.is_synced():
            for_s = min(for_s, (notice.expires_ms - self._clock.time_ms()) / 1000)
        self._until_s = self._now_s() + for_s

    def _now_s(self) -> float:
        return self._clock.monotonic_ms() / 1000
