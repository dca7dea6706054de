"""Connections whose bytes are counted below TLS: what a link carries, but for TCP and IP."""

from __future__ import annotations

import math
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import anyio
import anyio.abc
import httpcore
import httpx
from anyio.streams.tls import TLSAttribute, TLSStream

from device.routing.budget import Budget
from device.routing.errors import BudgetSpentError

READ_BYTES: Final = 16 << 10
"""Most that is read at once."""
WINDOW_BYTES: Final = 128 << 10
"""Most that is on its way unread: what an answer that is left may take beyond the budget."""
_TCP_INFO_BYTES: Final = 136
_BYTES_RECEIVED: Final = 128
"""Where Linux' ``struct tcp_info`` has ``tcpi_bytes_received`` (include/uapi/linux/tcp.h, 4.1)."""
Counter = Callable[[str, int], None]
"""Told ``sent`` or ``received``, and bytes."""


class CountedBytes(anyio.abc.ByteStream):
    """A TCP stream that takes what it sends and receives from a budget.

    Args:
        stream: The stream.
        budget: No byte passes once it is used up.
        counter: Told of every byte, too.
    """

    def __init__(self, stream: anyio.abc.SocketStream, budget: Budget, counter: Counter) -> None:
        self._stream, self._budget, self._counter = stream, budget, counter
        self._received = 0
        # Linux doubles it; asyncio reads all of it at once, while the kernel takes as much again.
        sock = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - anyio's
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES // 4)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the stream."""
        return self._stream.extra_attributes

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        """Receive some bytes."""
        # Half of the last bytes, so that a connection that waits does not hold all of them.
        half = math.ceil(min(self._budget.free, 2 * READ_BYTES) / 2)
        most = min(max_bytes, half)
        if not most:
            raise BudgetSpentError("today's byte budget for the cloud is used up")
        async with self._budget.expected(most):
            data = await self._stream.receive(most)
            self._received += len(data)
            self._count("received", len(data))
        return data

    async def send(self, item: bytes) -> None:
        """Send bytes."""
        if len(item) > self._budget.free:
            raise BudgetSpentError("today's byte budget for the cloud is used up")
        async with self._budget.expected(len(item)):
            self._count("sent", len(item))
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """End the sending half."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream; what came and was not read is counted."""
        unread = _carried(self._stream.extra(anyio.abc.SocketAttribute.raw_socket)) - self._received  # noqa: S610 - anyio's
        if unread > 1:  # the end of a stream counts as one
            self._received += unread
            self._count("received", unread)
        await self._stream.aclose()

    def _count(self, direction: str, size: int) -> None:
        self._budget.count(size)
        self._counter(direction, size)


class _Stream(httpcore.AsyncNetworkStream):
    """What httpcore reads and writes."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError) as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        if not buffer:
            return
        try:
            with anyio.fail_after(timeout):
                await self._stream.send(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError) as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> httpcore.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                tls = await TLSStream.wrap(
                    self._stream,
                    server_side=False,
                    hostname=server_hostname,
                    ssl_context=ssl_context,
                    standard_compatible=False,
                )
        except BaseException as error:
            await self.aclose()
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout from error
            if isinstance(error, anyio.BrokenResourceError | anyio.EndOfStream | ssl.SSLError):
                raise httpcore.ConnectError(str(error)) from error
            raise
        return _Stream(tls)

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610 - anyio's
        if info == "is_readable":  # an idle connection that is readable was closed
            sock = self._stream.extra(anyio.abc.SocketAttribute.raw_socket, None)  # noqa: S610
            return _is_readable(sock)
        return None


class CountedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections that a budget and a counter see.

    Args:
        budget: See ``CountedBytes``.
        counter: See there.
    """

    def __init__(self, budget: Budget, counter: Counter) -> None:
        self._budget, self._counter = budget, counter

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Open a connection."""
        del local_address, socket_options  # not asked for by ``counted_transport``
        try:
            with anyio.fail_after(timeout):
                stream = await anyio.connect_tcp(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return _Stream(CountedBytes(stream, self._budget, self._counter))

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await anyio.sleep(seconds)


class CountedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over one counted connection at a time.

    Args:
        context: TLS, certificates checked.
        budget: See ``CountedBytes``.
        counter: See there.
    """

    def __init__(self, context: ssl.SSLContext, budget: Budget, counter: Counter) -> None:
        super().__init__(verify=context, trust_env=False)
        # httpx hands httpcore's options on, all but the network backend.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=1,
            max_keepalive_connections=1,
            keepalive_expiry=30,
            network_backend=CountedBackend(budget, counter),
        )


def _carried(sock: Any) -> int:
    """Return how many bytes a connection has received, read or not; 0 once it is closed."""
    if sock.fileno() < 0:
        return 0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0])


def _is_readable(sock: Any) -> bool:
    """Return whether reading would not wait, as it does once the other side has closed."""
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
