"""The bytes of a day: counted as they go over the wire, remembered over restarts and power cuts.

The file never says less than was used: it is written before the bytes go out, some ahead, so that a
budget costs a write of some bytes now and then and a power cut costs what was written ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

from device.ledger import DAY_S, Ledger, read_ledger, write_ledger
from device.routing.errors import BudgetSpentError
from edgekit.bundle.storage import storage_errors
from edgekit.errors import StorageError

OPTION: Final = "state_file of [routing]"
AHEAD_BYTES: Final = 64 << 10
"""What the file is ahead of what is used: a power cut may cost as much, one write buys as much."""


class Budget:
    """A ledger in a file. One event loop uses it.

    Args:
        path: The file; it is made if it is not there.
        limit: Bytes in a day; may be changed at any time.
        clock: Seconds since 1970.
        ticks: Seconds that never go back.

    Raises:
        StorageError: The file cannot be read or written, is none of a budget, or is in use.
    """

    def __init__(
        self,
        path: Path,
        limit: float,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self._path, self._clock, self._ticks = path, clock, ticks
        self._ticked = ticks()
        self._reserved = 0
        self._lock = asyncio.Lock()
        # One thread: a write that nobody waits for any more still ends before the next.
        self._disk = ThreadPoolExecutor(1, "budget")
        self._held = _hold(path)
        try:
            self._ledger = read_ledger(path, OPTION) or Ledger(int(clock() // DAY_S), 0)
            self._written = self._ledger
            _write(path, self._ledger)  # fails now rather than in a request
        except StorageError:
            self._held.close()
            raise

    @property
    def left(self) -> float:
        """Bytes that may still be used today."""
        return max(self.limit - self._now().used, 0)

    @property
    def unreserved(self) -> float:
        """Of those, the bytes that no request counts on."""
        return max(self.left - self._reserved, 0)

    @contextlib.asynccontextmanager
    async def reserved(self, wanted: int) -> AsyncIterator[None]:
        """Set bytes aside for a request while it lasts; what it uses is counted as it goes.

        Raises:
            BudgetSpentError: There are not as many.
            StorageError: The file cannot be written.
        """
        if wanted > self.unreserved:
            raise BudgetSpentError(f"{wanted} bytes are more than what is left of today's")
        self._reserved += wanted
        try:
            await self.prepare(self._reserved)
            yield
        finally:
            self._reserved -= wanted

    async def prepare(self, more: int) -> None:
        """Have the file say what is used and more, before it is.

        Raises:
            StorageError: The file cannot be written.
        """
        if self._covers(more):
            return
        async with self._lock:
            if not self._covers(more):
                ahead = replace(self._now(), used=self._ledger.used + more + AHEAD_BYTES)
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._disk, _write, self._path, ahead)
                self._written = ahead

    def count(self, used: int) -> None:
        """Count bytes that went over the wire."""
        ledger = self._now()
        self._ledger = replace(ledger, used=ledger.used + used)

    def close(self) -> None:
        """Write what was used, no more."""
        self._disk.shutdown()
        _write(self._path, self._now())
        self._held.close()

    def _covers(self, more: int) -> bool:
        ledger, written = self._now(), self._written
        return written.day == ledger.day and written.used >= ledger.used + more

    def _now(self) -> Ledger:
        ticked = self._ticks()
        self._ledger = self._ledger.at(self._clock(), ticked - self._ticked)
        self._ticked = ticked
        return self._ledger


def _hold(path: Path) -> BinaryIO:
    """Return what keeps other processes from counting in the same file, until it is closed."""
    beside = path.with_name(path.name + ".lock")
    with storage_errors(beside, option=OPTION):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = beside.open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise StorageError(
            f"{path} is in use by another server", "Give each a state_file of its own"
        ) from error
    return held


def _write(path: Path, ledger: Ledger) -> None:
    write_ledger(path, ledger, OPTION)
