"""How long a request would wait for a slot, from the queue and from how long answers took."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # NumPy comes with them
    from device.runtime.request import Request
    from device.runtime.scheduler import Load

SAMPLES = 32
"""Answers whose times are remembered: enough for a mean, few enough to follow a change."""


class ServiceTimes:
    """Seconds that answers had a slot."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=SAMPLES)

    def ended(self, request: Request, now_s: float) -> None:
        """Note an answer; one that was cut short by its client says nothing.

        Args:
            request: It.
            now_s: Of the scheduler's clock.
        """
        if request.reason in {"stop", "length"} and request.started_s is not None:
            self._seconds.append(now_s - request.started_s)

    @property
    def mean_s(self) -> float:
        """Their mean; 0 before the first."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else 0.0

    def wait_s(self, load: Load) -> float:
        """Return the seconds that one more request would wait; infinite if it would be refused.

        Slots come free one after another, ``slots`` in a mean service time.
        """
        ahead = load.waiting - (load.slots - load.running)
        if ahead < 0:
            return 0.0
        if ahead >= load.queue_limit:
            return math.inf
        return (ahead + 1) * self.mean_s / load.slots
