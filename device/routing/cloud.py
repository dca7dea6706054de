"""The endpoint in the cloud: one request, and its answer as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import anyio
import httpx

from device.routing.budget import Budget
from device.routing.config import RoutingConfig
from device.routing.errors import (
    CloudBusyError,
    CloudError,
    CloudLateError,
    CloudRefusedError,
    CloudUnreachableError,
)
from device.routing.translate import EventStream, error_message, incoming
from device.routing.wire import CountedTransport, Counter
from edgekit import __version__
from edgekit.errors import first_line

MAX_ANSWER_BYTES: Final = 16 << 20
MAX_ERROR_BYTES: Final = 16 << 10
DRAIN_S: Final = 0.25
"""What follows an answer's last event comes with it, or is not worth waiting for."""
HANDSHAKE_BYTES: Final = 4096
"""About what TLS takes to begin: certificates, mostly."""
REFUSALS: Final = frozenset({400, 413, 422})
"""Statuses that say something of the request; any other says that the endpoint does not serve."""


class Cloud:
    """A client of the endpoint. What it sends is made here: nothing of a client's request head.

    Args:
        config: Where it is, and for how long it may be silent.
        budget: Every byte is taken from it.
        counter: Told of every byte.

    Raises:
        StorageError: Key or certificates cannot be read.
    """

    def __init__(self, config: RoutingConfig, budget: Budget, counter: Counter) -> None:
        key = config.api_key()
        self._url = config.base_url.rstrip("/")
        self._headers = {
            # Decompressed, some bytes could be any number of them.
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": f"edgekit/{__version__}",
            **({} if key is None else {"authorization": f"Bearer {key}"}),
        }
        connect_s, tls = config.connect_timeout_s, config.tls()
        self._wait_s = connect_s

        def make() -> httpx.AsyncClient:
            return httpx.AsyncClient(
                transport=CountedTransport(tls, budget, counter),
                timeout=httpx.Timeout(config.read_timeout_s, connect=connect_s),
                # One client's cookies would come with the next one's request.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                follow_redirects=False,
                trust_env=False,
            )

        self._make = make
        # The one used last comes first: its connection is open still.
        self._free: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        self._all = {make() for _ in range(config.connections)}
        self._closing: set[asyncio.Task[None]] = set()
        for client in self._all:
            self._free.put_nowait(client)

    def sends(self, path: str, body: bytes) -> int:
        """Return about how many bytes a request takes, the answer left out."""
        head = sum(len(name) + len(value) + 4 for name, value in self._headers.items())
        return len(body) + head + len(self._url) + len(path) + HANDSHAKE_BYTES

    async def ask(self, path: str, body: bytes, name: str, deadline_s: float) -> bytes:
        """Return a whole answer under our model's name.

        Args:
            path: After the base URL.
            body: JSON.
            name: Our model's.
            deadline_s: Of the monotonic clock.

        Raises:
            CloudError: It failed or refused.
        """
        accept, data = "application/json", bytearray()
        async with contextlib.aclosing(self._parts(path, body, accept, deadline_s)) as parts:
            async for part in parts:
                data += part
                if len(data) > MAX_ANSWER_BYTES:
                    raise CloudError(f"the cloud's answer has more than {MAX_ANSWER_BYTES} bytes")
        return incoming(bytes(data), name)

    async def stream(
        self, path: str, body: bytes, name: str, deadline_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Yield a streamed answer's lines; the first ones have an event that is no error.

        Leaving early closes the connection, which tells the cloud to stop.

        Args:
            path: As of ``ask``, and so the others.
            body: JSON.
            name: Our model's.
            deadline_s: Of the monotonic clock.

        Raises:
            CloudError: It failed or refused.
        """
        events, accept, held = EventStream(name), "text/event-stream", b""
        async with contextlib.aclosing(self._parts(path, body, accept, deadline_s)) as parts:
            async for part in parts:
                held += events.feed(part)
                if events.error is not None:
                    raise CloudError("the cloud failed", events.error)
                if events.is_done and events.events == 1:
                    raise CloudError("the cloud's stream has no event")
                if events.events and held:
                    yield held
                    held = b""
                if events.is_done:
                    await _drain(parts)
                    return
        raise CloudError("the cloud's stream ended before the answer did")

    async def close(self) -> None:
        """Close the connections."""
        for client in self._all:
            await client.aclose()
        await asyncio.gather(*self._closing, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _connection(self, deadline_s: float) -> AsyncIterator[httpx.AsyncClient]:
        """Lend a client of one connection.

        A pool of httpcore's keeps a connection for ever whose task is cancelled while it closes it
        (seen with 1.0.9): one that was left in any way but an answer or an error is not used again.

        Raises:
            CloudBusyError: None is free in time.
        """
        try:
            with anyio.fail_after(min(self._wait_s, max(deadline_s - time.monotonic(), 0))):
                client = await self._free.get()
        except TimeoutError as error:
            raise CloudBusyError("all connections to the cloud are in use") from error
        try:
            yield client
        except CloudError:
            self._free.put_nowait(client)
            raise
        except BaseException:
            self._replace(client)
            raise
        else:
            self._free.put_nowait(client)

    def _replace(self, client: httpx.AsyncClient) -> None:
        """Have another client in a client's place, and close its connection beside."""
        other = self._make()
        self._all = {*self._all - {client}, other}
        self._free.put_nowait(other)
        task = asyncio.get_running_loop().create_task(client.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _parts(
        self, path: str, body: bytes, accept: str, deadline_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an answer of status 200."""
        headers = {**self._headers, "accept": accept}
        async with self._connection(deadline_s) as client:
            request = client.build_request("POST", self._url + path, content=body, headers=headers)
            with _in_time(deadline_s):
                response = await client.send(request, stream=True)
            async with contextlib.aclosing(response):
                if response.status_code != 200:
                    raise await _explained(response, deadline_s)
                kind = response.headers.get("content-type", "").partition(";")[0].strip()
                if kind != accept:
                    raise CloudError(
                        f"the cloud does not answer with {accept}", f"but with {kind!r}"
                    )
                parts = response.aiter_raw()
                while True:
                    with _in_time(deadline_s):
                        part = await anext(parts, None)
                    if part is None:
                        return
                    yield part


async def _drain(parts: AsyncGenerator[bytes, None]) -> None:
    """Read what frames an answer's end: the connection can then be used again."""
    with contextlib.suppress(CloudError), anyio.move_on_after(DRAIN_S):
        async for part in parts:
            del part


@contextlib.contextmanager
def _in_time(deadline_s: float) -> Iterator[None]:
    """Bound a wait, and tell a link that is down from an endpoint that fails."""
    try:
        with anyio.fail_after(max(deadline_s - time.monotonic(), 0)):
            yield
    except TimeoutError as error:
        raise CloudLateError("the cloud did not answer before the deadline") from error
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise CloudUnreachableError(f"the cloud cannot be reached: {_said(error)}") from error
    except httpx.HTTPError as error:
        # What a library says of an answer that it refuses may quote it, and that the prompt.
        name = type(error).__name__
        raise CloudError(f"the cloud failed: {name}", first_line(error)) from error


async def _explained(response: httpx.Response, deadline_s: float) -> CloudError:
    """Return what an answer of another status means."""
    data, parts, status = bytearray(), response.aiter_raw(), response.status_code
    while len(data) < MAX_ERROR_BYTES:
        with _in_time(deadline_s):
            part = await anext(parts, None)
        if part is None:
            break
        data += part
    said = error_message(bytes(data))
    if status in REFUSALS:
        return CloudRefusedError(f"the cloud refused the request with {status}", said, status)
    after = response.headers.get("retry-after", "")
    retry_after_s = float(after) if after.isdecimal() and after.isascii() else None
    return CloudError(f"the cloud answered {status}", said, retry_after_s=retry_after_s)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
