"""Rows that are on their way to the store, and until when to wait for its answer."""

from __future__ import annotations

from edgekit.contracts.seq_ranges import Ranges


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

    def extend(self, boot: str, seq: Ranges, now_ms: int) -> None:
        """Wait anew for those of some rows that are waited for."""
        for row in self._of(boot, seq):
            self._deadlines[row] = now_ms + self._answer_ms

    def remove(self, boot: str, seq: Ranges) -> None:
        """Wait no longer for some rows."""
        for row in self._of(boot, seq):
            del self._deadlines[row]

    def holds(self, boot: str, seq: int, now_ms: int) -> bool:
        """Whether a row is waited for; one whose deadline has passed is not."""
        deadline_ms = self._deadlines.get((boot, seq))
        if deadline_ms is None:
            return False
        if now_ms < deadline_ms:
            return True
        del self._deadlines[boot, seq]
        return False

    def _of(self, boot: str, seq: Ranges) -> list[tuple[str, int]]:
        """Return the rows of some ranges that are waited for, however wide the ranges are."""
        return [
            (name, number)
            for name, number in self._deadlines
            if name == boot and any(first <= number <= last for first, last in seq)
        ]
