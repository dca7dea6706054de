"""What devices ask: ``GET /v1/pending``, and ``PUT /v1/diagnostics/<id>`` for what they were asked.

A device is who its certificate says; it sees what is for it and nothing else. Answers carry a tag:
asked again with it, the service answers 304 without a body, which is what a metered link wants.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit.bundle.storage import storage_errors, sync_folder
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.topics import Device
from edgekit.errors import EdgekitError, MessageError, StorageError, TrustError
from ota.config.peer import device_of
from ota.config.store import DocumentStore

_LOG = logging.getLogger(__name__)
MAX_DIAGNOSTIC_BYTES: Final = 8 << 20


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def make_app(store: DocumentStore, now_ms: Callable[[], int] = _now_ms) -> Starlette:
    """Return the application.

    Args:
        store: What waits for whom.
        now_ms: The time.
    """
    service = _Service(store, now_ms)
    return Starlette(
        routes=[
            Route("/v1/pending", service.pending, methods=["GET"]),
            Route("/v1/diagnostics/{id}", service.diagnostics, methods=["PUT"]),
        ],
        exception_handlers={
            TrustError: _told(403),
            MessageError: _told(400),
            StorageError: _told(503),
            EdgekitError: _told(500),
        },
    )


class _Service:
    def __init__(self, store: DocumentStore, now_ms: Callable[[], int]) -> None:
        self._store, self._now_ms = store, now_ms

    def pending(self, request: Request) -> Response:
        """Answer what waits; in a thread, as Starlette runs what is no coroutine."""
        device = device_of(request.scope)
        cohorts = request.query_params.getlist("cohort")
        found = self._store.pending(device, cohorts, self._now_ms())
        body = canonical_bytes({"documents": [envelope.to_dict() for envelope in found]})
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "no-store"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        _LOG.info("%s is given %d documents", device.path, len(found))
        return Response(body, media_type="application/json", headers=headers)

    async def diagnostics(self, request: Request) -> Response:
        """Take the bundle of a command, once."""
        device, command_id = device_of(request.scope), request.path_params["id"]
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_DIAGNOSTIC_BYTES:
            return _too_large()
        use, place = await run_in_threadpool(
            self._store.upload_place, device, command_id, self._now_ms()
        )
        if use == "unknown":
            return _error(404, "no command asks for this")
        if use == "used":
            return _error(409, "it was sent already")
        return await _receive(request, place, device)


async def _receive(request: Request, place: Path, device: Device) -> Response:
    """Write a body to a file that was not there: of two that come at once one is kept."""
    with storage_errors(place, option="--documents"):
        file = await run_in_threadpool(_begin, place)
        try:
            async for piece in request.stream():
                if file.tell() + len(piece) > MAX_DIAGNOSTIC_BYTES:
                    return _too_large()
                file.write(piece)
            size = file.tell()
            await run_in_threadpool(_finish, file, place)
        except FileExistsError:
            return _error(409, "it was sent already")
        except ClientDisconnect:
            return _error(400, "it was not sent to its end")
        finally:
            file.close()
    _LOG.info("%s has sent %d bytes for %s", device.path, size, place.name)
    return Response(status_code=201)


def _begin(place: Path) -> IO[bytes]:
    """Return a file beside where the bundle goes; it is gone once it is closed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=place.parent, prefix=".writing-")


def _finish(file: IO[bytes], place: Path) -> None:
    """Give a file its name, on disk when this returns; raises FileExistsError if it is taken."""
    file.flush()
    os.fsync(file.fileno())
    os.link(file.name, place)
    sync_folder(place.parent)


def _too_large() -> Response:
    response = _error(413, f"a bundle has at most {MAX_DIAGNOSTIC_BYTES} bytes")
    response.headers["connection"] = "close"  # the rest is not read
    return response


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


def _told(status: int) -> Callable[[Request, Exception], Response]:
    def tell(request: Request, error: Exception) -> Response:
        said = error.message if isinstance(error, EdgekitError) else type(error).__name__
        _LOG.warning("%s %s: %s", request.method, request.url.path, said)
        return _error(status, said if status < 500 else "the service fails")

    return tell
