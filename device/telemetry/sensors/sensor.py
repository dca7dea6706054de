"""What a sensor is to those that read it."""

from __future__ import annotations

from typing import Protocol

from edgekit.contracts.series import Values


class Sensor(Protocol):
    """One source of readings.

    Attributes:
        name: Label of its errors.
    """

    name: str

    def read(self, now_s: float) -> Values:
        """Return the readings of now; quick, and without waiting for a network.

        Args:
            now_s: Monotonic time.

        Raises:
            SensorError: The source is there and cannot be understood.
        """
        ...
