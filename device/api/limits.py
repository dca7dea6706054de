"""What a connection may hold, and for how long: nobody locks others out by stalling.

uvicorn's HTTP/1.1 protocol waits for a request for ever, and counts what waits: clients that send
nothing, or a byte now and then, would take all connections there are. Here a request has a time to
arrive (as Apache's ``mod_reqtimeout`` has it: some seconds, and more for what has come), a client
that does not read its answer is left after a while, and when all connections are taken a newcomer
gets the place of one that waits for a request.

The names of ``H11Protocol`` that are used here are uvicorn's own; h11's states are its public API.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Final, TypeGuard

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from device.api.errors import ApiError

FAREWELL_S: Final = 1.0
"""In which a client that was left has to take the rest of what it is told."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may take.

    Attributes:
        connections: Open at once; each is a file of the process.
        request_s: Seconds that a request has to arrive; a connection that is kept open, to begin.
        bytes_per_s: A request of more bytes has more time: as if it came at this rate.
        unread_s: Seconds in which a client has to take 48 KiB of an answer that waits for it.
        handshakes: Of TLS at once; each has ``request_s``.
    """

    connections: int = 512
    request_s: float = 10.0
    bytes_per_s: int = 4096
    unread_s: float = 30.0
    handshakes: int = 64


def guarded(limits: Limits = Limits()) -> type[H11Protocol]:
    """Return the protocol that keeps these limits, as uvicorn's ``Config(http=...)`` takes it.

    uvicorn's own ``limit_concurrency`` has to be left out, and ``ws="none"`` to be given: a
    connection that becomes a web socket's would not be watched.
    """
    return type("Guarded", (Guarded,), {"limits": limits})


class Guarded(H11Protocol):
    """HTTP/1.1 with deadlines; see the module.

    Attributes:
        limits: Of all connections of a server.
        since_s: When the request that is waited for could begin to arrive.
        was_left: Whether it was ended because no request came: nothing is lost with it.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection, in the place of another if need be."""
        self.since_s = self.loop.time()
        self._received = 0
        self._unread_since_s: float | None = None
        self.was_left = False
        self.host = (transport.get_extra_info("peername") or ("",))[0]
        if not self._make_room():
            self.app = busy
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._watcher.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes of a request."""
        if self.is_awaited:
            self._received += len(data)
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self.since_s, self._received = self.loop.time(), 0
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Note since when the client is behind."""
        self._unread_since_s = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it has caught up."""
        self._unread_since_s = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in OpenAI's shape."""
        self._refuse(ApiError(400, msg))

    @property
    def is_awaited(self) -> bool:
        """Whether the client has yet to send a request, or the rest of one."""
        return self.conn.their_state in {h11.IDLE, h11.SEND_BODY}

    def leave(self) -> None:
        """End a connection whose request did not come in its time."""
        if self._received:
            self._refuse(ApiError(408, "the request did not arrive in its time"))
        self.transport.close()
        self.was_left = True
        if self.transport.get_extra_info("ssl_object") is not None:
            # TLS waits half a minute for the other side's farewell.
            self.loop.call_later(FAREWELL_S, self.transport.abort)

    def _watch(self) -> None:
        """Leave a client that is late; look again soon."""
        limits, now_s = self.limits, self.loop.time()
        answered = self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE, h11.SEND_BODY}
        # Once the answer is out nobody wants the rest of a body: it has no time of its own.
        more_s = 0.0 if answered else self._received / limits.bytes_per_s
        if self._unread_since_s is not None and now_s - self._unread_since_s > limits.unread_s:
            self._drop()
        elif self.transport.is_closing():
            # What is left to be written keeps it open, were it for ever.
            self._unread_since_s = self._unread_since_s or now_s
        elif self.is_awaited and now_s - self.since_s > limits.request_s + more_s:
            self.leave()
        interval_s = min(1.0, limits.request_s / 4, limits.unread_s / 4)
        self._watcher = self.loop.call_later(interval_s, self._watch)

    def _drop(self) -> None:
        """Reset a connection: what the kernel holds for the client goes, too."""
        reset = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, reset)
        self.transport.abort()

    def _make_room(self) -> bool:
        """Return whether there is room, once one was left that waits for a request if need be.

        That is one of the client that has most, the one that has waited longest.
        """
        if len(self.connections) < self.limits.connections:
            return True
        idle = [one for one in self.connections if _is_idle(one)]
        if not idle:
            gone = (one for one in self.connections if isinstance(one, Guarded) and one.was_left)
            ending = next(gone, None)
            if ending is not None:
                ending.transport.abort()
            return ending is not None
        held = Counter(one.host for one in idle)
        max(idle, key=lambda one: (held[one.host], -one.since_s)).leave()
        return True

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, if nothing of an answer is out, and close."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            body = bytes(error.response().body)
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def _is_idle(connection: Any) -> TypeGuard[Guarded]:
    """Return whether a connection can be left without anyone losing an answer."""
    return (
        isinstance(connection, Guarded)
        and connection.is_awaited
        and not connection.transport.is_closing()
    )


async def busy(scope: Scope, receive: Receive, send: Send) -> None:
    """Say that all connections are taken by requests that are being answered."""
    response = ApiError(503, "all connections are taken", code="too_many_connections").response()
    response.headers["connection"] = "close"
    await response(scope, receive, send)
