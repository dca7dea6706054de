"""A server in this process, on a free loopback port."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from factories import EXAMPLE

from device.api.app import make_app
from device.api.limits import Limits, guarded
from device.api.service import Service, Settings
from edgekit.bundle.reader import open_bundle
from edgekit.engine.load import load_bundle
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

NAME = "edgekit-r1-tiny"
SUM: list[Any] = [{"role": "user", "content": "What is 58 + 67?"}]


def build_example(root: Path) -> Path:
    """Return a bundle of the trained example with a context of 512."""
    request = BuildRequest(
        model=str(EXAMPLE),
        target=TARGETS["cpu"],
        recipe=load_recipe("w4a16-g64"),
        out=root / "bundle",
        max_context=512,
    )
    return build(request).path


@contextlib.contextmanager
def served(
    bundle: Path,
    settings: Settings | None = None,
    slots: int = 4,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    send_buffer: int | None = None,
) -> Iterator[tuple[str, Service]]:
    """Serve a bundle; yields the base address and the service, and stops both."""
    model = load_bundle(open_bundle(bundle), threads=2, max_sequences=slots, digests=False)
    service = Service(model, model.own_sampling, settings or Settings(drain_s=5.0))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if send_buffer is not None:  # else the kernel takes megabytes that nobody reads
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            make_app(service),
            http=guarded(limits),
            ws="none",
            log_level="error",
            lifespan="on",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}", service
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def settle(service: Service, within_s: float = 10.0) -> None:
    """Wait until no request runs or waits."""
    scheduler = service.engine._scheduler
    end = time.monotonic() + within_s
    while scheduler.running or scheduler.waiting:
        assert time.monotonic() < end, "a slot leaks"
        time.sleep(0.01)


def post(
    server: tuple[str, Service], body: Any, path: str = "/v1/chat/completions"
) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server[0] + path, content=data, timeout=30)


def connect(address: str, timeout_s: float = 20.0) -> socket.socket:
    """Return a connection to a server; what it does not read stays with the server."""
    parts, made = urlsplit(address), socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(timeout_s)
    made.connect((parts.hostname, parts.port))
    return made


def raw(address: str, data: bytes) -> bytes:
    """Send bytes; return all that comes until the server closes."""
    with connect(address) as caller:
        caller.sendall(data)
        found = b""
        while part := caller.recv(1 << 16):
            found += part
    return found
