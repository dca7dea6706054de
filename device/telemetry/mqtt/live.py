"""Live mode: on demand a sample at every tick is sent by itself, for some minutes at most."""

from __future__ import annotations

from typing import Final

from device.telemetry.clock import Clock
from edgekit.contracts.command_arguments import MAX_LIVE_MINUTES
from edgekit.errors import TelemetryError

LIVE_S: Final = 60.0 * MAX_LIVE_MINUTES
"""Longest that one command keeps it on: 720 samples, about 1.8 MB, if the day has them."""


class Live:
    """Whether it is on; it ends by itself. Any thread may start it.

    Args:
        clock: The ring's.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = float("-inf")
        self.is_affordable = True

    @property
    def is_on(self) -> bool:
        """Whether samples are sent live now."""
        return self.is_affordable and self._now_s() < self._until_s

    def start(self, for_s: float) -> None:
        """Begin; asked again it begins anew.

        Args:
            for_s: For how long; ``LIVE_S`` at most.

        Raises:
            TelemetryError: The day's bytes are spoken for.
        """
        if not self.is_affordable:
            raise TelemetryError("no live mode: the day's bytes are spoken for")
        self._until_s = self._now_s() + min(for_s, LIVE_S)

    def _now_s(self) -> float:
        return self._clock.monotonic_ms() / 1000
