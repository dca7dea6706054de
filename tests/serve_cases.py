"""A server in this process, on a free loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from factories import EXAMPLE

from device.agent.front import make_front
from device.agent.loading import load_model
from device.agent.models import Models
from device.agent.options import LoadOptions
from device.agent.server import listen
from device.api.limits import Limits, guarded
from device.api.log import JsonLog
from device.api.metrics import Metrics
from device.api.service import Service
from device.api.settings import Settings
from edgekit.bundle.layout import MANIFEST, MANIFEST_DIGEST
from edgekit.bundle.reader import open_bundle
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


@dataclass
class Running:
    """A server that runs in a thread of this process.

    Attributes:
        address: Its base address.
        models: What it serves.
        loop: Its event loop.
    """

    address: str
    models: Models
    loop: asyncio.AbstractEventLoop

    def swap(self, path: Path) -> str:
        """Put another bundle in place, and wait until it is done."""
        return asyncio.run_coroutine_threadsafe(self.models.swap(path), self.loop).result(60)


@contextlib.contextmanager
def served(
    bundle: Path,
    settings: Settings | None = None,
    slots: int = 4,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    send_buffer: int | None = None,
) -> Iterator[tuple[str, Service]]:
    """Serve a bundle; yields the base address and the service, and stops both."""
    with running(bundle, settings, slots, limits=limits, send_buffer=send_buffer) as server:
        assert server.models.current is not None
        yield server.address, server.models.current.service


@contextlib.contextmanager
def running(
    bundle: Path,
    settings: Settings | None = None,
    slots: int = 4,
    *,
    log: str = "off",
    vllm_metrics: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    send_buffer: int | None = None,
) -> Iterator[Running]:
    """Serve a bundle as the agent does; yields the server, and stops it."""
    metrics = Metrics()
    lines = JsonLog(log, metrics.log_lost.inc)
    options = LoadOptions(threads=2, max_sequences=slots, digests=False)
    models = Models(bundle, options, settings or Settings(drain_s=5.0), metrics, lines)
    front = make_front(models, lines, vllm_metrics=vllm_metrics)
    loops: list[asyncio.AbstractEventLoop] = []
    with listen("127.0.0.1", 0) as listener:
        if send_buffer is not None:  # else the kernel takes megabytes that nobody reads
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            front, http=guarded(limits), log_level="error", lifespan="on", ws="none"
        )
        server = uvicorn.Server(config)
        models.adopt(load_model(open_bundle(bundle), options))

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Running(f"http://127.0.0.1:{port}", models, loops[0])
        finally:
            server.should_exit = True
            thread.join(30)
            lines.close()
            assert not thread.is_alive()


def renamed(bundle: Path, out: Path, name: str) -> Path:
    """Return a copy of a bundle that is another by its name, and so by its digest."""
    shutil.copytree(bundle, out, copy_function=os.link)
    manifest = replace(open_bundle(bundle).manifest, name=name)
    for path, data in (
        (out / MANIFEST, manifest.to_bytes()),
        (out / MANIFEST_DIGEST, f"{manifest.digest()}\n".encode()),
    ):
        path.unlink()  # the other bundle's file is the same one
        path.write_bytes(data)
    return out


def point(link: Path, target: Path) -> None:
    """Let a link lead elsewhere, as an updater does: in one step."""
    fresh = link.with_suffix(".new")
    fresh.symlink_to(target)
    fresh.rename(link)


def wait_until(
    condition: Callable[[], bool],
    within_s: float = 10.0,
    what: str = "it did not come about",
    every_s: float = 0.005,
) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(every_s)


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
