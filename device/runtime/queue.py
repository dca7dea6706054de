"""The requests that wait for a slot: no client before its turn."""

from __future__ import annotations

from collections import OrderedDict, deque

from device.runtime.request import Request


class FairQueue:
    """Clients take turns; what one client asked goes in its order."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Request]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def put(self, request: Request) -> None:
        """Add a request behind those of its client."""
        self._clients.setdefault(request.client, deque()).append(request)

    def take(self) -> Request | None:
        """Return the next request; its client goes to the end of the line."""
        if not self._clients:
            return None
        client, waiting = self._clients.popitem(last=False)
        request = waiting.popleft()
        if waiting:
            self._clients[client] = waiting
        return request

    def crowding(self, client: str) -> Request | None:
        """Return the last request of the client that has most, where another has no fair share.

        That is if one more of the other's would still be no more than what is left to the first.
        """
        own = len(self._clients.get(client, ()))
        most = max(self._clients.values(), key=len, default=deque[Request]())
        return most[-1] if len(most) >= own + 2 else None

    def drop(self, request: Request) -> bool:
        """Remove a request that waits; returns whether it did."""
        waiting = self._clients.get(request.client, deque())
        if request not in waiting:
            return False
        waiting.remove(request)
        if not waiting:
            del self._clients[request.client]
        return True

    def expired(self, now_s: float) -> list[Request]:
        """Remove and return the requests whose deadline has passed."""
        late = [
            request
            for waiting in self._clients.values()
            for request in waiting
            if request.deadline_s is not None and request.deadline_s <= now_s
        ]
        for request in late:
            self.drop(request)
        return late
