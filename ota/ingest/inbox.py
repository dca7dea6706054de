"""Messages between the thread that receives them and the one that stores them.

It needs no bound of its own: the broker sends no more than the receive maximum before it has
acknowledgements, and when a connection ends, what came by it is dropped, since it comes again. Of
what a broker sends without waiting for acknowledgements (QoS 0), the link puts little here.
"""

from __future__ import annotations

import time
from collections import deque
from threading import Condition

from ota.ingest.messages import Arrived

QUIET_S = 0.05
"""A group is complete when nothing has come for this long: a broker may hold more back until it has
acknowledgements, and it tells nobody how many messages it has in flight at most."""


class Inbox:
    """A queue that is emptied in groups."""

    def __init__(self) -> None:
        self._messages: deque[Arrived] = deque()
        self._changed = Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Arrived) -> None:
        """Add a message."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def clear(self) -> None:
        """Drop all messages."""
        with self._changed:
            self._messages.clear()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def gather(self, messages: int, wait_s: float) -> list[Arrived]:
        """Return the next group: empty if the inbox was closed.

        Args:
            messages: Most messages in it.
            wait_s: How long to wait for more after the first.
        """
        with self._changed:
            while not self._messages and not self._closed:
                self._changed.wait()
            deadline = time.monotonic() + wait_s
            while len(self._messages) < messages and not self._closed:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._changed.wait(min(left_s, QUIET_S)):
                    break
            if self._closed:
                return []
            return [self._messages.popleft() for _ in range(min(messages, len(self._messages)))]
