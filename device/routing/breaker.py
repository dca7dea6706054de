"""A circuit breaker: an endpoint that fails is let alone for a while, then tried by one request."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Counts failures in a row.

    Closed, requests pass. After ``failures`` in a row it opens for a backoff that doubles with
    every further failure and is drawn between half of itself and the whole, so that a fleet does
    not come back at once. Then it is half-open: one request passes, and what becomes of it closes
    or opens it.

    Args:
        failures: In a row, that open it.
        backoff_s: The first, at most.
        backoff_max_s: The longest.
        clock: Seconds from any start, never going back.
        draw: A number in [0, 1).
    """

    def __init__(
        self,
        failures: int,
        backoff_s: float,
        backoff_max_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._limit = failures
        self._backoff_s, self._max_s = backoff_s, backoff_max_s
        self._clock, self._draw = clock, draw
        self._failures = 0
        self._until_s: float | None = None
        self._probe: object | None = None

    def state(self) -> State:
        """Return what it is now."""
        if self._until_s is None:
            return "closed"
        return "open" if self._clock() < self._until_s else "half-open"

    def passes(self) -> bool:
        """Return whether a request may go out now."""
        return self.state() == "closed" or (self.state() == "half-open" and self._probe is None)

    def begin(self) -> object:
        """Say that a request goes out; returns what the calls below tell it by."""
        ticket = object()
        if self._probe is None and self.state() == "half-open":
            self._probe = ticket
        return ticket

    def answered(self, ticket: object) -> None:
        """Say that the endpoint has begun to answer: others need not wait for the end.

        The failures are not forgotten before that: the next one opens the circuit again.
        """
        if self._probe is ticket:
            self._until_s = self._probe = None

    def succeeded(self) -> None:
        """Say that the endpoint answered."""
        self._failures, self._until_s, self._probe = 0, None, None

    def failed(self, ticket: object, retry_after_s: float | None = None) -> None:
        """Say that it did not.

        Args:
            ticket: Of the request.
            retry_after_s: How long it asked to be let alone; that opens the breaker at once.
        """
        self.abandoned(ticket)
        self._failures += 1
        if self._failures < self._limit and retry_after_s is None:
            return
        # 2**60 s is past any limit: the power must not grow for ever.
        doublings = min(max(self._failures - self._limit, 0), 60)
        backoff_s = min(self._backoff_s * 2.0**doublings, self._max_s)
        drawn_s = backoff_s * (1 + self._draw()) / 2
        asked_s = min(retry_after_s or 0.0, self._max_s)
        self._until_s = self._clock() + max(drawn_s, asked_s)

    def abandoned(self, ticket: object) -> None:
        """Say that a request was given up before it showed anything."""
        if self._probe is ticket:
            self._probe = None
