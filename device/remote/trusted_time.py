"""What time it is at least, for expiry: a device without a clock's battery boots in the past.

The floor is the latest time of issue of a document that was taken up, and what the monotonic clock
has counted since. The device's own clock raises it never: a wrong time server would put the floor
years ahead, and every document that follows would have expired for ever.
"""

from __future__ import annotations

from typing import Final

from device.remote.errors import RefusedError
from device.telemetry.clock import Clock

SKEW_MS: Final = 3_600_000
"""By how much the signer's clock may be ahead of the device's."""


class TrustedTime:
    """Time as documents are held to it.

    Args:
        clock: The device's.
        floor_ms: What was remembered.
    """

    def __init__(self, clock: Clock, floor_ms: int) -> None:
        self._clock = clock
        self._floor_ms, self._since_ms = floor_ms, clock.monotonic_ms()

    @property
    def floor_ms(self) -> int:
        """It is this late at least, whatever the device's clock says."""
        return self._floor_ms + self._clock.monotonic_ms() - self._since_ms

    @property
    def now_ms(self) -> int:
        """The time: the clock's where NTP holds it, else the floor."""
        clock_ms = self._clock.time_ms() if self._clock.is_synced() else 0
        return max(clock_ms, self.floor_ms)

    def raise_to(self, issued_ms: int) -> None:
        """Learn that it is at least this late."""
        if issued_ms > self.floor_ms:
            self._floor_ms, self._since_ms = issued_ms, self._clock.monotonic_ms()

    def check(self, issued_ms: int, expires_ms: int) -> None:
        """Refuse what has expired, or was signed in the future.

        Raises:
            RefusedError: So it is.
        """
        now_ms = self.now_ms
        if expires_ms <= now_ms:
            late_s = (now_ms - expires_ms) // 1000
            raise RefusedError("expired", f"it expired {late_s} s ago", "Sign a new one")
        if self._clock.is_synced() and issued_ms > now_ms + SKEW_MS:
            ahead_s = (issued_ms - now_ms) // 1000
            raise RefusedError(
                "early", f"it is signed {ahead_s} s in the future", "Set the signer's clock"
            )
