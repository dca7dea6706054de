"""A hub on loopback: enough of its HTTP interface to list and fetch one revision."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" * 6 + "cafe"

Repositories = dict[str, dict[str, bytes]]


class _Handler(BaseHTTPRequestHandler):
    repositories: Repositories
    requests: list[str]

    def do_GET(self) -> None:
        """Answer a listing or a file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer a file's size and digest."""
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        span = self.headers.get("Range", "")
        self.requests.append(f"{self.command} {path} {span}".strip())
        parts = path.removeprefix("api/models/").split("/")
        name = "/".join(parts[:2])
        files = self.repositories.get(name)
        if "gated" in name:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
        elif "broken" in name:
            self._send(500, b"{}", {}, body=body)
        elif files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif parts[2] in {"revision", "tree"}:
            self._listing(name, parts[2:], files, body=body)
        elif "/".join(parts[4:]) not in files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
        else:
            data = files["/".join(parts[4:])]
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            if span and "rangeless" not in name:
                first, _, last = span.removeprefix("bytes=").partition("-")
                self._send(206, data[int(first) : int(last) + 1], headers, body=body)
            else:
                self._send(200, data, headers, body=body)

    def _listing(self, name: str, what: list[str], files: dict[str, bytes], *, body: bool) -> None:
        if what[1] not in {"main", COMMIT}:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
            return
        rows = [
            {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
            for path, data in files.items()
        ]
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [], "tags": []}
        self._send(200, json.dumps(rows if what[0] == "tree" else info).encode(), {}, body=body)

    def _send(self, code: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def environment(home: Path, endpoint: str, *, offline: bool = False) -> dict[str, str]:
    """Return the environment of a process whose hub is this one, and whose cache is in ``home``."""
    return {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@contextmanager
def serve(repositories: Repositories) -> Iterator[tuple[str, list[str]]]:
    """Serve repositories on loopback; yields the endpoint and the requests it has seen."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"repositories": repositories, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
