"""A device's server and its cloud, and what tests ask of both."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from cloud_cases import Cloud, config_of
from serve_cases import NAME, SUM, served, settle

from device.api.service import Service
from device.api.settings import Settings
from device.routing.router import Router

LONG: list[Any] = [{"role": "user", "content": "word " * 600}]
TOO_LONG = {"model": NAME, "messages": LONG}
SHORT = {"model": NAME, "messages": SUM, "temperature": 0}


class Pair:
    """A device's server and its cloud."""

    def __init__(self, cloud: Cloud, server: tuple[str, Service], router: Router) -> None:
        self.cloud, self.server, self.router = cloud, server, router

    def ask(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(self.server[0] + path, json=body, headers=names, timeout=30)

    @contextlib.contextmanager
    def busy(self) -> Iterator[threading.Event]:
        """Have one request hold the slot until the event is set."""
        scheduler, release = self.server[1].engine._scheduler, threading.Event()
        decode = scheduler._decode

        def hold() -> None:
            if not release.is_set():
                time.sleep(0.002)
            else:
                decode()

        scheduler._decode = hold  # type: ignore[method-assign]
        body = {"model": NAME, "prompt": "To be", "max_tokens": 40, "stream": True}
        url = f"{self.server[0]}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)  # what the prompt's last position says
            try:
                yield release
            finally:
                release.set()


@contextlib.contextmanager
def paired(
    bundle: Path, folder: Path, cloud: Cloud, settings: dict[str, Any] | None = None, **config: Any
) -> Iterator[Pair]:
    with cloud.running() as url:
        router = Router(config_of(config.pop("base_url", url), folder, **config))
        more: dict[str, Any] = {"drain_s": 5.0, **(settings or {})}
        with served(bundle, Settings(router=router, **more), slots=1) as server:
            yield Pair(cloud, server, router)
            settle(server[1])


def route(response: httpx.Response) -> str:
    return response.headers["x-edgekit-route"]


def series(pair: Pair, name: str) -> float:
    text = httpx.get(pair.server[0] + "/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.rpartition(" ")[2])
