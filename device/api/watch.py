"""Work for a client that is dropped as soon as the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request

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


async def _left(request: Request) -> None:
    """Return when the client has gone."""
    with contextlib.suppress(ClientDisconnect):
        while (await request.receive())["type"] != "http.disconnect":
            pass
