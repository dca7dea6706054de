"""A receiver of Alertmanager's webhooks."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class Webhook:
    """Keeps what it is told.

    Attributes:
        port: On 127.0.0.1.
        told: Path, time and document of each call.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, float, dict[str, Any]]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                told.append((self.path, time.time(), json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Webhook:  # noqa: PYI034  # Self is of 3.11
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def names(self, path: str) -> list[str]:
        """Return the alerts that a receiver was told fire, as ``NAME DEVICE``, each once."""
        found = {
            f"{one['labels']['alertname']} {one['labels'].get('device', '')}".strip()
            for at, _, document in self.told
            if at == path
            for one in document["alerts"]
            if one["status"] == "firing"
        }
        return sorted(found)
