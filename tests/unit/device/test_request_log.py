"""The log: a line a request, nothing of what was asked, and no stream held back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from device.api.errors import ApiError
from device.api.log import JsonLog, RequestLog
from device.api.record import current
from edgekit.errors import StorageError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(app: Any, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> list[Message]:
    """Ask an ASGI application; returns what it sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": headers or []}
    asyncio.run(app(scope, receive, send))
    return sent


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in three parts, and note when each has left."""
    del receive
    record = current()
    assert record is not None
    record.client = "lab"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    for part in (b"1", b"2", b""):
        await send({"type": "http.response.body", "body": part, "more_body": bool(part)})
        scope.setdefault("left", []).append(part)


def test_messages_pass_at_once_with_an_id(tmp_path: Path) -> None:
    """Each part of a stream is sent before the next is made; the id is a header and in the log."""
    log = JsonLog(str(tmp_path / "log"), lambda: None)
    sent = call(RequestLog(stream, log), "/v1/completions")
    assert [message.get("body") for message in sent] == [None, b"1", b"2", b""]
    headers = dict(sent[0]["headers"])
    (line,) = lines(tmp_path / "log")
    assert headers[b"x-request-id"].decode() == line["id"]
    assert headers[b"a"] == b"b"
    assert (line["client"], line["status"], line["route"]) == ("lab", 200, "/v1/completions")
    log.close()


@pytest.mark.parametrize(
    ("given", "kept"), [(b"trace-1.a_B", True), (b"", False), (b"a b", False), (b"x" * 65, False)]
)
def test_an_id_that_is_one_is_kept(given: bytes, kept: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A proxy's, say; what could be more than an id is not."""
    log = JsonLog(str(tmp_path / "log"), lambda: None)
    sent = call(RequestLog(stream, log), "/", [(b"x-request-id", given)])
    assert (dict(sent[0]["headers"])[b"x-request-id"] == given) == kept
    log.close()


def test_paths_of_no_route_and_probes(tmp_path: Path) -> None:
    """Who asks for a secret's name is not helped to write it down; probes are noise."""
    log = JsonLog(str(tmp_path / "log"), lambda: None)
    for path in ("/sk-secret", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/sk"):
        call(RequestLog(stream, log), path)
    assert [line["route"] for line in lines(tmp_path / "log")] == [
        "unknown",
        "/v1/models",
        "/v1/models",
    ]
    log.close()


def test_faults_have_their_type(tmp_path: Path) -> None:
    """What escapes is named and goes on; what is told to a client is named as the error was."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError(scope, receive, send)

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        answer = ApiError(429, "wait", code="queue_full", fault="QueueFullError").response()
        await answer(scope, receive, send)

    log = JsonLog(str(tmp_path / "log"), lambda: None)
    with pytest.raises(ZeroDivisionError):
        call(RequestLog(broken, log), "/tokenize")
    call(RequestLog(refusing, log), "/tokenize")
    first, second = lines(tmp_path / "log")
    assert (first["error"], first["status"]) == ("ZeroDivisionError", 0)
    assert (second["error"], second["status"]) == ("QueueFullError", 429)
    log.close()


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """A file that cannot be opened is an error; a disk that is full later costs lines, counted."""
    with pytest.raises(StorageError, match="cannot write the log"):
        JsonLog(str(tmp_path / "none" / "log"), lambda: None)
    lost: list[int] = []
    log = JsonLog("/dev/full", lambda: lost.append(1))
    log.event("started")
    assert lost == [1]
    with pytest.raises(OSError, match="No space"):
        log.close()


def test_a_log_that_was_moved_is_begun_again(tmp_path: Path) -> None:
    """As logrotate does it."""
    log = JsonLog(str(tmp_path / "log"), lambda: None)
    log.event("a")
    (tmp_path / "log").rename(tmp_path / "old")
    log.reopen()
    log.event("b")
    assert [line["event"] for line in lines(tmp_path / "old")] == ["a"]
    assert [line["event"] for line in lines(tmp_path / "log")] == ["b"]
    log.close()
    JsonLog("off", lambda: None).event("nothing")
