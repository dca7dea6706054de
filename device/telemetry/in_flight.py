"""Rows that are on their way to the store, and until when to wait for its answer."""

from __future__ import annotations

from edgekit.contracts.seq_ranges import Ranges, contains


class InFlight:
    """A set of rows with deadlines, in memory alone.

    Args:
        answer_ms: Time from sending, or from the broker's PUBACK, to the store's answer.
    """

    def __init__(self, answer_ms: int) -> None:
        self._answer_ms = answer_ms
        self._deadlines: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def add(self, boot: str, seq: int, now_ms: int) -> None:
        """Begin to wait for a row."""
        self._deadlines[boot, seq] = now_ms + self._answer_ms

    def extend(self, boot: str, seq: Ranges, now_ms: int, answer_ms: int | None = None) -> None:
        """Wait anew, or for another time, for those of some rows that are waited for."""
        for row in self._of(boot, seq):
            self._deadlines[row] = now_ms + (answer_ms or self._answer_ms)

    def remove(self, boot: str, seq: Ranges) -> None:
        """Wait no longer for some rows."""
        for row in self._of(boot, seq):
            del self._deadlines[row]

    def forget_late(self, now_ms: int) -> None:
        """Wait no longer for rows whose deadline has passed, whether the ring has them or not."""
        late = [row for row, deadline_ms in self._deadlines.items() if deadline_ms <= now_ms]
        for row in late:
            del self._deadlines[row]

    def holds(self, boot: str, seq: int) -> bool:
        """Whether a row is waited for."""
        return (boot, seq) in self._deadlines

    def _of(self, boot: str, seq: Ranges) -> list[tuple[str, int]]:
        """Return the rows of some ranges that are waited for, however wide the ranges are."""
        return [
            (name, number)
            for name, number in self._deadlines
            if name == boot and contains(seq, number)
        ]
