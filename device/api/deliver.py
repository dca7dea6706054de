"""How answers reach a client: whole, or as a stream of events; one that leaves is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from device.api.aside import aside
from device.api.errors import explain
from device.api.replies import Reply, event
from device.api.watch import event_stream, first_of, unless_left
from device.runtime.answer import Piece
from edgekit.errors import EdgekitError

Pieces: TypeAlias = AsyncGenerator[Piece, None]
Indexed: TypeAlias = "tuple[int, Piece | None]"
"""Which answer, and what of it; None: it has ended."""


async def whole(request: Request, reply: Reply, answers: Sequence[Pieces]) -> Response:
    """Return all answers together, once they are finished.

    Raises:
        ClientLeftError: The client went away; all are cancelled.
        EdgekitError: One of them failed; the others are cancelled.
    """

    async def consume() -> None:
        async with contextlib.aclosing(merged(answers)) as pieces:
            async for piece in pieces:
                del piece

    await unless_left(request, consume())
    return await aside(reply.size, lambda: JSONResponse(reply.whole()))


async def stream(request: Request, reply: Reply, answers: Sequence[Pieces]) -> Response:
    """Return a streaming response; what fails before the first token has its own status.

    Until then the client is watched: who leaves the queue gives up its place in it.

    Raises:
        ClientLeftError: The client went away before anything was sent.
        EdgekitError: An answer failed before anything was sent.
    """
    pieces = merged(answers)
    head = await first_of(request, pieces)

    async def events() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(pieces):
            for index in range(len(answers)):
                yield reply.first(index)
            yield _event_of(reply, head)
            try:
                async for piece in pieces:
                    yield _event_of(reply, piece)
            except EdgekitError as error:
                # The status is out already: the error is the stream's last event.
                yield event(explain(error).body())
                return
            yield reply.last()

    return event_stream(events())


async def merged(answers: Sequence[Pieces]) -> AsyncGenerator[Indexed, None]:
    """Yield the pieces of some answers as they come, and each answer's end.

    Leaving early, or the failure of one, cancels all.
    """
    if len(answers) == 1:  # no tasks and queues for what nearly all requests are
        async with contextlib.aclosing(answers[0]) as pieces:
            async for piece in pieces:
                yield 0, piece
        yield 0, None
        return
    found: asyncio.Queue[Indexed | BaseException] = asyncio.Queue()

    async def read(index: int, pieces: Pieces) -> None:
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    found.put_nowait((index, piece))
        except Exception as error:  # noqa: BLE001 - raised where the pieces are read
            found.put_nowait(error)
        else:
            found.put_nowait((index, None))

    tasks = [asyncio.create_task(read(*item)) for item in enumerate(answers)]
    try:
        left = len(answers)
        while left:
            item = await found.get()
            if isinstance(item, BaseException):
                raise item
            left -= item[1] is None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _event_of(reply: Reply, item: Indexed) -> bytes:
    index, piece = item
    return reply.end(index) if piece is None else reply.piece(index, piece)
