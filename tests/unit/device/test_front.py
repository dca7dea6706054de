"""What stands before the models: bodies, deadlines, headers that browsers may send."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from device.agent.front import make_front
from device.agent.hosted import Hosted
from device.agent.models import Models
from device.agent.options import LoadOptions
from device.api.log import JsonLog
from device.api.metrics import Metrics
from device.api.record import current
from device.api.service import Service
from device.api.settings import Settings

PIECES = 100_000


def front_of(settings: Settings, model: Starlette | None = None) -> tuple[Any, Models]:
    """Return the application of a process, before a model of one's own."""
    metrics = Metrics()
    log = JsonLog("off", metrics.log_lost.inc)
    models = Models(Path("none"), LoadOptions(), settings, metrics, log)
    if model is not None:
        service = cast("Service", SimpleNamespace(name="model"))  # its name is all that is asked
        models.current = Hosted(service, model)
    return make_front(models, log), models


def asked(front: Any, pieces: Iterator[bytes], **headers: str) -> tuple[int, bytes]:
    """Return how a request is answered whose body comes in pieces."""
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        piece = next(pieces, None)
        if piece is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(front(scope, receive, send))
    return told[0]["status"], b"".join(message.get("body", b"") for message in told)


def test_a_body_in_many_pieces_takes_no_more_than_its_bytes() -> None:
    """Byte by byte: else whoever sends 4 MiB like that would take a gigabyte."""

    async def length(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    model = Starlette(routes=[Route("/v1/completions", length, methods=["POST"])])
    front, _ = front_of(Settings(), model)
    tracemalloc.start()
    try:
        pieces = iter([b"x"] * PIECES)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert asked(front, pieces) == (200, str(PIECES).encode())
        assert tracemalloc.get_traced_memory()[1] - before < 10 * PIECES
    finally:
        tracemalloc.stop()


def test_the_deadline_is_the_requests_own() -> None:
    """Of its head, from when it came; also where it waits for a model that is being put in place.

    What is no number is told.
    """
    found: list[float] = []

    async def note(request: Request) -> PlainTextResponse:
        del request
        record = current()
        assert record is not None
        assert record.deadline_s is not None
        found.append(record.deadline_s - record.arrived_s)
        return PlainTextResponse("")

    model = Starlette(routes=[Route("/v1/completions", note, methods=["POST"])])
    front, models = front_of(Settings(timeout_s=100), model)
    for said in ({}, {"x_edgekit_deadline_s": "7"}, {"x_edgekit_deadline_s": "700"}):
        assert asked(front, iter([b"{}"]), **said)[0] == 200
    assert found == [pytest.approx(100), pytest.approx(7), pytest.approx(100)]
    assert asked(front, iter([]), x_edgekit_deadline_s="soon")[0] == 400
    models._open.clear()  # as while models change in turn
    began = time.monotonic()
    assert asked(front, iter([b"{}"]), x_edgekit_deadline_s="0.2")[0] == 504
    assert time.monotonic() - began < 5


def test_browsers_may_pin_and_bound_a_request() -> None:
    """A page of a named origin may send each header that a request is told by."""
    front, _ = front_of(Settings(cors_origins=("https://a.example",)))
    told: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    wanted = b"x-edgekit-privacy, x-edgekit-deadline-s, x-request-id, authorization"
    headers = [
        (b"origin", b"https://a.example"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", wanted),
    ]
    scope = {"type": "http", "method": "OPTIONS", "path": "/v1/completions", "headers": headers}
    asyncio.run(front(scope, receive, send))
    assert told[0]["status"] == 200
