"""A histogram that the engine's thread can afford once a token.

One thread observes; whoever reads sees counts that are at most one observation apart. A labelled
histogram of prometheus-client takes a lock and walks its buckets: several times as long.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Finer than vLLM's below 10 ms: a small model on a GPU is there."""


class Gaps:
    """Counts of seconds by bucket.

    Attributes:
        counts: Observations of each bucket alone, the last beyond every bound.
        total_s: Sum of all.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    def add(self, other: Gaps) -> None:
        """Add the counts of another, which counts no more."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total_s += other.total_s

    def buckets(self) -> list[tuple[str, float]]:
        """Return bound and observations up to it, as Prometheus has them."""
        found, below = [], 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found
