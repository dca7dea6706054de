"""Packet loss of a window of probes, as the lower bound of what the counts allow.

A hundred probes with one lost are no 1 %. The Wilson score interval (Wilson 1927, J. Am. Stat.
Assoc. 22, 209) says what loss they prove; below some thousand probes it proves nothing near 0.1 %,
so a window with fewer has no value. It is asked again with every probe, therefore the bound is
that of 3 standard deviations and not of 1.96: ``docs/telemetry.md`` has the false alarms of both.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 3600.0
MIN_PROBES = 1000
DEVIATIONS = 3.0
_STEP_S = 10.0


def wilson_lower_bound(lost: int, sent: int, deviations: float = DEVIATIONS) -> float:
    """Return the least loss that ``lost`` of ``sent`` are likely under, from 0 to 1; sent > 0."""
    share, squared = lost / sent, deviations**2
    centre = share + squared / (2 * sent)
    spread = deviations * math.sqrt(share * (1 - share) / sent + squared / (4 * sent**2))
    return max((centre - spread) / (1 + squared / sent), 0.0)


class LossWindow:
    """The probes of the last hour.

    Args:
        window_s: How far back it looks.
        min_probes: With fewer it says nothing.
        deviations: How sure it is.
    """

    def __init__(
        self,
        window_s: float = WINDOW_S,
        min_probes: int = MIN_PROBES,
        deviations: float = DEVIATIONS,
    ) -> None:
        self._window_s = window_s
        self._min_probes = min_probes
        self._deviations = deviations
        self._points: deque[tuple[float, int, int]] = deque()

    def update(self, now_s: float, sent: int, lost: int) -> float | None:
        """Take in the probe's counters; return the lower bound of the loss.

        Args:
            now_s: Monotonic time.
            sent: Counter of probes whose fate is known.
            lost: Counter of those lost; either may begin again at 0 with a new probe.
        """
        points = self._points
        if points and (sent < points[-1][1] or lost < points[-1][2]):
            points.clear()
        while len(points) > 1 and points[1][0] <= now_s - self._window_s:
            points.popleft()
        if not points or now_s - points[-1][0] >= _STEP_S:
            points.append((now_s, sent, lost))
        in_window, lost_in_window = sent - points[0][1], lost - points[0][2]
        if in_window < self._min_probes or lost_in_window > in_window:
            return None
        return round(wilson_lower_bound(lost_in_window, in_window, self._deviations), 6)
