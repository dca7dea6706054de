"""The log: JSON lines, one a request and one for what happens to the server.

Prompts, answers, keys and addresses asked for that are none of the API's are never written. A
request's line comes when its answer has been sent, or cannot be.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device.api.record import Record, begin
from edgekit.errors import StorageError

if TYPE_CHECKING:  # NumPy comes with it
    from device.runtime.request import Request

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
PROBES = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds: they are logged only when the server is at fault."""
MODELS = "/v1/models"
ROUTES = (
    *PROBES,
    "/v1/chat/completions",
    "/v1/completions",
    MODELS,
    "/tokenize",
    "/detokenize",
)


class JsonLog:
    """Writes JSON lines to standard output or to a file.

    Args:
        where: ``stdout``, ``off`` or a file, which is appended to.
        lost: Called for each line that could not be written.
        tail: Given each line as well, for a diagnostic bundle.

    Raises:
        StorageError: The file cannot be opened.
    """

    def __init__(
        self, where: str, lost: Callable[[], None], tail: Callable[[str], None] | None = None
    ) -> None:
        self._where, self._lost, self._tail = where, lost, tail
        self._file: TextIO | None = None
        self.reopen()

    def reopen(self) -> None:
        """Open the file anew, after another program has moved it away.

        Raises:
            StorageError: It cannot be opened.
        """
        if self._where == "off":
            return
        if self._where == "stdout":
            self._file = sys.stdout
            return
        try:
            opened = Path(self._where).open("a", encoding="utf-8")  # noqa: SIM115 - kept open
        except OSError as error:
            raise StorageError(
                f"cannot write the log {self._where}: {error.strerror or error}",
                "Choose another file, or stdout",
            ) from error
        self.close()
        self._file = opened

    def close(self) -> None:
        """Close the file."""
        if self._file is not None and self._file is not sys.stdout:
            self._file.close()
        self._file = None

    def event(self, name: str, **fields: Any) -> None:
        """Write that something happened."""
        self._write({"event": name, **fields})

    def request(self, record: Record, route: str) -> None:
        """Write how a request was answered."""
        requests = record.requests
        firsts = [r.first_token_s for r in requests if r.first_token_s is not None]
        self._write(
            {
                "event": "request",
                "id": record.id,
                "client": record.client,
                "route": route,
                "status": record.status,
                "model": record.model or None,
                "prompt_tokens": sum(len(r.prompt) for r in requests),
                "cached_tokens": sum(r.reused_tokens for r in requests),
                "completion_tokens": sum(len(r.generated) for r in requests),
                "ttft_s": round(min(firsts) - record.arrived_s, 6) if firsts else None,
                "seconds": round(time.monotonic() - record.arrived_s, 6),
                "finish_reason": ",".join(map(_end, requests)) or None,
                "error": record.fault or None,
            }
        )

    def _write(self, fields: dict[str, Any]) -> None:
        if self._file is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **fields}, ensure_ascii=False)
        if self._tail is not None:
            self._tail(line)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):  # the disk is full, the reader gone: answers go on
            self._lost()


class RequestLog:
    """ASGI middleware: gives each request its id and its line; passes every message on at once.

    Args:
        app: What answers.
        log: Where lines go.
    """

    def __init__(self, app: ASGIApp, log: JsonLog) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(scope))
        begin(record)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                own = (b"x-request-id", record.id.encode())
                message = {**message, "headers": [*message.get("headers", ()), own]}
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except BaseException as error:
            record.fault = record.fault or type(error).__name__
            raise
        finally:
            path = scope["path"]
            if path not in PROBES or record.status == 500:
                self._log.request(record, _route_of(path))


def _request_id(scope: Scope) -> str:
    """Return the id that a client or a proxy gave, if it is one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value, "ascii")
    return f"req-{secrets.token_hex(12)}"


def _end(request: Request) -> str:
    """Return how a request ended: as the engine says, or before it had it, or by leaving it."""
    return request.reason or ("refused" if request.queued_s is None else "cancelled")


def _route_of(path: str) -> str:
    """Return a path as the log has it: nothing that a client made up is written down."""
    if path.startswith(f"{MODELS}/"):
        return MODELS
    return path if path in ROUTES else "unknown"
