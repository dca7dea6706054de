"""The bytes of the day that telemetry has used on the link, kept over restarts and power cuts.

Used are what the kernel counts of the connection (handshakes, acknowledgements, pings and what was
sent again among it) and the headers of its segments.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from device.ledger import DAY_S, Ledger, read_ledger, write_ledger
from device.telemetry.clock import Clock
from edgekit.errors import StorageError

logger = logging.getLogger(__name__)

OPTION = "ring of [telemetry]"
AHEAD_BYTES = 64 << 10
"""What the file is ahead of what is used: it is written seldom and never says too little."""
HEADER_BYTES = 52
"""IPv4 and TCP headers with timestamps (RFC 7323)."""


def wire_bytes(sent: int, received: int, segments: int) -> int:
    """Return what a connection costs on the link.

    Args:
        sent: Bytes of TCP payload sent, repetitions included.
        received: Bytes of TCP payload received.
        segments: Segments sent; about as many come back, data or bare acknowledgements.
    """
    return sent + received + 2 * HEADER_BYTES * segments


class DayBytes:
    """A day's bytes in a file.

    A file that cannot be read, or is none of a budget, counts as a day that is spent: samples wait
    in the ring until midnight, alarms are sent. It keeps nobody from beginning.

    Args:
        path: The file.
        limit: Bytes in a day.
        clock: The ring's.

    Attributes:
        limit: As given.
    """

    def __init__(self, path: Path, limit: int, clock: Clock) -> None:
        self.limit = limit
        self._path, self._clock = path, clock
        self._ticked_ms = clock.monotonic_ms()
        self._seen = 0
        self._ledger = self._begun()
        self._written = self._ledger
        try:
            write_ledger(path, self._ledger, OPTION)
        except StorageError as error:  # the next count tries again
            logger.error("counting bytes in memory alone: %s", error)  # noqa: TRY400 - no fault

    @property
    def used(self) -> int:
        """Bytes of today."""
        return self._now().used

    @property
    def left(self) -> int:
        """Bytes that may still be used today."""
        return max(self.limit - self.used, 0)

    @property
    def left_s(self) -> float:
        """Seconds until the day ends, at least one."""
        ledger = self._now()
        until = (ledger.day + 1) * DAY_S - self._clock.time_ms() / 1000
        return max(min(until, DAY_S - ledger.age_s), 1.0)

    def take_total(self, total: int) -> None:
        """Take in a counter of bytes that only grows while this object lives.

        Raises:
            StorageError: The file cannot be written; the bytes are counted all the same.
        """
        more, self._seen = total - self._seen, total
        self.count(more)

    def count(self, more: int) -> None:
        """Count bytes.

        Raises:
            StorageError: The file cannot be written; the bytes are counted all the same.
        """
        ledger = self._now()
        self._ledger = ledger = replace(ledger, used=ledger.used + max(more, 0))
        if (self._written.day, self._written.used) < (ledger.day, ledger.used):
            ahead = replace(ledger, used=ledger.used + AHEAD_BYTES)
            write_ledger(self._path, ahead, OPTION)
            self._written = ahead

    def close(self) -> None:
        """Write what was used, no more.

        Raises:
            StorageError: The file cannot be written.
        """
        write_ledger(self._path, self._now(), OPTION)

    def _begun(self) -> Ledger:
        """Return what the file says; the whole day as used if it cannot be told."""
        today = int(self._clock.time_ms() / 1000 // DAY_S)
        try:
            return read_ledger(self._path, OPTION) or Ledger(today, 0)
        except StorageError as error:
            logger.error("the day's bytes count as used: %s", error.message)  # noqa: TRY400 - told
            return Ledger(today, self.limit)

    def _now(self) -> Ledger:
        ticked_ms = self._clock.monotonic_ms()
        passed_s = (ticked_ms - self._ticked_ms) / 1000
        self._ledger = self._ledger.at(self._clock.time_ms() / 1000, passed_s)
        self._ticked_ms = ticked_ms
        return self._ledger
