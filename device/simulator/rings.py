"""Rings of simulated devices: real ones that count, and may write down what they promise.

``Ring.put`` promises that a row outlives a crash. With a log of what it promised, a test can tell
whether each row reached the store, without believing what the ring itself says afterwards.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from device.telemetry.clock import Clock
from device.telemetry.ring import ALARM, SAMPLE, Limits, Ring, Row
from device.telemetry.rows import sample_of
from edgekit.contracts.message import CLOCKS
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.series import Values
from edgekit.errors import StorageError


class PromiseLog:
    """A file with a line a row: device, boot, number, priority, and of a sample its digest.

    A line is written when ``put`` has returned, with one call each, so what stands there was
    promised even if the process is killed at once. Several processes may write one file.

    Args:
        path: The file; what it holds stays.

    Raises:
        StorageError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def write(self, device: str, boot: str, rows: Sequence[tuple[int, bytes]], kind: int) -> None:
        """Write down rows, number and payload."""
        lines = []
        for seq, payload in rows:
            row = Row(boot, seq, kind, 0, CLOCKS[0], payload)
            digest = readings_digest(sample_of(row).values) if kind == SAMPLE else 0
            lines.append(f"{device} {boot} {seq} {kind} {digest}\n")
        os.write(self._file, "".join(lines).encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def readings_digest(values: Values) -> int:
    """Return the CRC-32 of readings: the same where they mean the same.

    Batches tell neither 5 from 5.0, nor 0.0 from -0.0, nor what is null from what is absent.
    """
    parts = (f"{name}={float(v) + 0.0}" for name, v in sorted(values.items()) if v is not None)
    return zlib.crc32("\n".join(parts).encode())


class CountingRing(Ring):
    """A ring that counts.

    Args:
        path: As of :class:`Ring`.
        kernel: As of :class:`Ring`.
        clock: As of :class:`Ring`.
        limits: As of :class:`Ring`.
        device: Whose it is, for the log.
        log: Where it writes down what it promised; None for nowhere.

    Attributes:
        counts: ``samples`` and ``alarms`` put, ``acknowledged``.
    """

    def __init__(
        self, path: Path, kernel: str, clock: Clock, limits: Limits, device: str,
        log: PromiseLog | None = None,
    ) -> None:  # fmt: skip
        super().__init__(path, kernel, clock, limits)
        self._device, self._log = device, log
        self.counts: Counter[str] = Counter()

    def put(self, payloads: Sequence[bytes], priority: int = SAMPLE) -> list[int]:
        """Keep rows, as :meth:`Ring.put` does."""
        numbers = super().put(payloads, priority)
        self.counts["alarms" if priority == ALARM else "samples"] += len(numbers)
        if self._log is not None:
            rows = list(zip(numbers, payloads, strict=True))
            self._log.write(self._device, self.boot, rows, priority)
        return numbers

    def acknowledge(self, boot: str, seq: Ranges) -> int:
        """Forget rows that the store has, as :meth:`Ring.acknowledge` does."""
        gone = super().acknowledge(boot, seq)
        self.counts["acknowledged"] += gone
        return gone
