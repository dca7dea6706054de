"""A cloud endpoint that does what a test tells it, and remembers every byte that reached it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device.routing.config import RoutingConfig

MODEL = "big-model"
KEY = "sk-of-the-device"


@dataclass
class Seen:
    """A request that came: its head, its body, and the connection to answer on."""

    head: str
    body: dict[str, Any]
    connection: socket.socket
    cloud: Cloud

    def send(self, data: bytes) -> None:
        self.cloud.sent += len(data)
        self.connection.sendall(data)

    def whole(self, body: Any, status: int = 200, head: str = "") -> None:
        data = json.dumps(body).encode()
        self.send(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{head}"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def begin(self) -> None:
        """Begin a stream."""
        self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def say(self, text: str) -> None:
        """Send an event of a stream."""
        delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        self.chunk(b"data: " + json.dumps({"model": MODEL, "choices": [delta]}).encode() + b"\n\n")

    def end(self) -> None:
        self.chunk(b"data: [DONE]\n\n")
        self.send(b"0\r\n\r\n")

    def was_left(self, within_s: float = 10.0) -> bool:
        """Whether the other side closes its connection."""
        self.connection.settimeout(within_s)
        try:
            return self.connection.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


def answer(seen: Seen) -> None:
    """Answer as OpenAI does, whole or streamed."""
    if seen.body.get("stream"):
        seen.begin()
        for word in ("from ", "the ", "cloud"):
            seen.say(word)
        seen.end()
        return
    message = {"role": "assistant", "content": "from the cloud"}
    choice = {"index": 0, "message": message, "text": "from the cloud", "finish_reason": "stop"}
    seen.whole({"id": "x", "model": MODEL, "choices": [choice]})


def refuse(status: int, head: str = "") -> Callable[[Seen], None]:
    """Answer with an error."""
    return lambda seen: seen.whole({"error": {"message": "no\nreally"}}, status, head)


@dataclass
class Cloud:
    """An HTTP/1.1 server on a free loopback port.

    Attributes:
        script: What it does with a request.
        seen: The requests that came.
        connections: How many there were, those without a request among them.
        received: Bytes, below TLS where there is none.
        sent: Bytes.
    """

    script: Callable[[Seen], None] = answer
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    received: int = 0
    sent: int = 0
    faults: list[BaseException] = field(default_factory=list)
    _open: list[socket.socket] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve; yields the base URL."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._accept, args=[listener], daemon=True).start()
            scheme = "http" if self.tls is None else "https"
            try:
                yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1"
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                for connection in self._open:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                    connection.close()
        assert not self.faults

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            while (seen := self._read(connection)) is not None:
                self.seen.append(seen)
                self.script(seen)
        except AssertionError as error:
            self.faults.append(error)
        except OSError:
            pass  # the other side closed, which tests look at by was_left
        finally:
            connection.close()

    def _read(self, connection: socket.socket) -> Seen | None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (part := connection.recv(1 << 16)):
                return None
            data += part
            self.received += len(part)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        (length,) = [int(x.partition(":")[2]) for x in lines if x.startswith("content-length:")]
        while len(body) < length:
            part = connection.recv(1 << 16)
            body += part
            self.received += len(part)
        return Seen(head.decode(), json.loads(body), connection, self)


def config_of(url: str, folder: Path, **more: Any) -> RoutingConfig:
    """Return what routes to a cloud, with short times."""
    key = folder / "key"
    key.write_text(KEY + "\n")
    values: dict[str, Any] = {
        "enabled": True,
        "base_url": url,
        "model": MODEL,
        "api_key_file": str(key),
        "state_file": str(folder / "budget.json"),
        "daily_bytes": 10_000_000,
        "connect_timeout_s": 1.0,
        "read_timeout_s": 2.0,
        "link_pause_s": 0.0,
    }
    return RoutingConfig(**values | more)
