"""Readings that another part of the device has already: the engine's, the server's, the ring's."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.contracts.series import Values, check_values
from edgekit.errors import MessageError, SensorError


class Counters:
    """Asks a callable.

    ``engine_memory_used_ratio`` is worked out where the callable gives both of what it is made of.

    Args:
        name: Label of its errors.
        source: Returns readings by name; called in the thread that reads the sensors.
    """

    def __init__(self, name: str, source: Callable[[], Values]) -> None:
        self.name = name
        self._source = source

    def read(self, now_s: float) -> Values:
        """Return the readings.

        Raises:
            SensorError: What the callable returns are no readings.
        """
        del now_s
        try:
            values = check_values(self._source(), self.name)
        except MessageError as error:
            raise SensorError(error.message) from error
        held = values.get("engine_memory_bytes")
        budget = values.get("engine_memory_budget_bytes")
        if held is None or not budget:
            return values
        return {**values, "engine_memory_used_ratio": round(held / budget, 4)}
