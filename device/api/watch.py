"""Work for a client that is dropped as soon as the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse

CLIENT_LEFT: Final = 499
"""nginx's status of a request whose client went away; nobody reads it but the log."""
T = TypeVar("T")


class ClientLeftError(Exception):
    """The client went away."""


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """Return what some work comes to.

    Args:
        request: Whose client is watched; its body has been read.
        work: Cancelled when the client goes away.

    Raises:
        ClientLeftError: It did.
    """
    worker, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientLeftError
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def first_of(request: Request, pieces: AsyncGenerator[T, None]) -> T:
    """Return the first of what a stream will be made of; if it does not come, all is closed.

    Raises:
        ClientLeftError: The client went away before.
    """
    try:
        return await unless_left(request, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Return the response of server-sent events, which nothing on the way may keep or gather."""
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _left(request: Request) -> None:
    """Return when the client has gone."""
    with contextlib.suppress(ClientDisconnect):
        while (await request.receive())["type"] != "http.disconnect":
            pass
