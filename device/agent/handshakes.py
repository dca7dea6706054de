"""TLS handshakes: each has its time, and together they have so many places.

A connection is handed on once its handshake is done, so a client that opens one and says nothing
holds none of the places of those who ask. It holds a file of the process and TLS' buffers, though
(0.25 MB), so the handshakes are few: when their places are taken a newcomer gets that of the oldest
of the address that has most. An honest one takes some milliseconds and is not the oldest.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Final

from device.api.limits import Limits

PAUSE_S: Final = 0.1
"""After a connection could not be accepted: no file is free, and one may be soon."""


class Handshakes:
    """Accepts connections and hands them on as TLS is agreed on.

    Args:
        protocol: Makes what a connection is handed to.
        context: Certificates; may be another for connections to come.
        limits: How many at once, and how long they may take.
    """

    def __init__(
        self, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext, limits: Limits
    ) -> None:
        self._protocol, self.context, self._limits = protocol, context, limits
        self._open: dict[asyncio.Task[None], str] = {}  # oldest first
        self._accepting: asyncio.Task[None] | None = None

    def start(self, listener: socket.socket, backlog: int) -> None:
        """Begin to accept.

        Args:
            listener: Where connections come.
            backlog: How many the kernel keeps until they are accepted.
        """
        listener.setblocking(False)
        listener.listen(backlog)
        self._accepting = asyncio.create_task(self._accept(listener))

    def check(self) -> None:
        """Raise what ended the accepting, if anything did: nobody could connect any more."""
        if self._accepting is not None and self._accepting.done():
            self._accepting.result()

    async def stop(self) -> None:
        """Accept no more, and leave those who are not done."""
        tasks = [*self._open] + ([] if self._accepting is None else [self._accepting])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError:  # the client left already, or no file is free
                self._leave_one()
                await asyncio.sleep(PAUSE_S)
                continue
            if len(self._open) >= self._limits.handshakes:
                self._leave_one()
            task = asyncio.create_task(self._agree(accepted))
            self._open[task] = address[0]
            task.add_done_callback(functools.partial(self._ended, accepted))

    async def _agree(self, accepted: socket.socket) -> None:
        """Do a handshake; what comes of it is the protocol's."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._protocol,
                accepted,
                ssl=self.context,
                ssl_handshake_timeout=self._limits.request_s,
            )
        except OSError:
            accepted.close()  # no TLS, no certificate, no time: as every client may, it left

    def _ended(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)
        if task.cancelled():  # perhaps before it had begun
            accepted.close()

    def _leave_one(self) -> None:
        """Leave the oldest of the address that has most."""
        if self._open:
            (address, _), *_ = Counter(self._open.values()).most_common(1)
            oldest = next(task for task, theirs in self._open.items() if theirs == address)
            del self._open[oldest]
            oldest.cancel()
