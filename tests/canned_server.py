"""An HTTP server in this process that answers as it is told, right or wrong."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 32, "completion_tokens": 3}
MODELS = {"object": "list", "data": [{"id": "canned"}, {"id": "other"}]}


def chunk(text: str | None = None, reason: str | None = None, **more: Any) -> bytes:
    """Return an event of a streamed completion."""
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": reason}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n".encode()


ANSWER = (chunk("a"), chunk("b"), chunk("", "stop"), chunk(usage=USAGE), b"data: [DONE]\n\n")


@dataclass
class Behaviour:
    """How it answers.

    Attributes:
        status: Of an answer.
        headers: Of an answer, beside or instead of those of a stream.
        pieces: An answer's body, sent one by one.
        pause_s: Before each piece.
        breaks_off: Whether the connection is closed before the body's end.
        after: Answered rightly so often before.
        asked: Requests that came: path, headers, body.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ANSWER
    pause_s: float = 0.0
    breaks_off: bool = False
    after: int = 0
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    behaviour: Behaviour


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # pieces come when they are sent

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        del format, args

    def do_GET(self) -> None:
        self._send(200, {"content-type": "application/json"}, (json.dumps(MODELS).encode(),))

    def do_POST(self) -> None:
        behaviour = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        behaviour.asked.append((self.path, headers, body))
        if self.path == "/tokenize":
            self._send(404, {}, (b"",))
            return
        answered = sum(path != "/tokenize" for path, _, _ in behaviour.asked)
        stream = {"content-type": "text/event-stream"}
        if answered <= behaviour.after:
            self._send(200, stream, ANSWER)
        else:
            self._send(behaviour.status, {**stream, **behaviour.headers}, behaviour.pieces)

    def _send(self, status: int, headers: dict[str, str], pieces: tuple[bytes, ...]) -> None:
        behaviour = self.server.behaviour
        size = sum(map(len, pieces)) + behaviour.breaks_off  # more than comes
        self.send_response(status)
        for name, value in {**headers, "content-length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                time.sleep(behaviour.pause_s)
                self.wfile.write(piece)
                self.wfile.flush()
        if behaviour.breaks_off:
            self.close_connection = True


@contextlib.contextmanager
def canned(behaviour: Behaviour) -> Iterator[str]:
    """Answer until the end; yields the base URL."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.behaviour = behaviour
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
