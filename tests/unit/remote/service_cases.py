"""The fleet's service under uvicorn with real certificates, and devices that ask it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from mqtt_certificates import Authority, Identity
from remote_cases import KEY, NOW_MS, trusting
from starlette.types import ASGIApp

from device.remote.config import FleetConfig, parse_fleet
from edgekit.contracts.signed import Document
from ota.config.app import make_app
from ota.config.server import server_config
from ota.config.store import DocumentStore


@dataclass
class Service:
    """A service that runs.

    Attributes:
        folder: Where its files are.
        port: Where it listens.
        authority: Of devices' certificates.
        server: Its own certificate.
        store: Its documents.
        now_ms: Its time.
    """

    folder: Path
    port: int
    authority: Authority
    server: Identity
    store: DocumentStore
    now_ms: int = NOW_MS
    _issued: dict[str, Identity] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def identity(self, name: str = "acme/device/orin-1") -> Identity:
        if name not in self._issued:
            self._issued[name] = self.authority.issue(name)
        return self._issued[name]

    def publish(self, *envelopes: Any) -> list[Document]:
        return [self.store.publish(one, trusting(KEY), self.now_ms) for one in envelopes]

    def config(self, **changes: Any) -> FleetConfig:
        """Return what a device is told of the service."""
        tenant, _, device = changes.pop("name", "acme/device/orin-1").split("/")
        identity = self.identity(f"{tenant}/device/{device}")
        table = {
            "url": self.url,
            "tenant": tenant,
            "device": device,
            "certificate": str(identity.certificate),
            "key": str(identity.key),
            "ca_file": str(self.authority.certificate),
            "cohorts": ["eu"],
            "timeout_s": 5,
        }
        return parse_fleet({**table, **changes})

    def client(self, identity: Identity | None = None) -> httpx.Client:
        """Return a client that shows a certificate, or none."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        return httpx.Client(verify=context, base_url=self.url, trust_env=False, timeout=5)


@contextlib.contextmanager
def running(config: uvicorn.Config, listener: socket.socket) -> Iterator[uvicorn.Server]:
    """Run a server in a thread until the end of the block."""
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        ends = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < ends
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextlib.contextmanager
def fleet_service(
    folder: Path, wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app, *, crl: bool = False
) -> Iterator[Service]:
    """Run the service.

    Args:
        folder: For its files.
        wrap: Put around the application.
        crl: Whether it knows the authority's revocation list, as it is now.
    """
    authority = Authority(folder / "certificates", "devices")
    listener = socket.create_server(("127.0.0.1", 0))
    server = authority.issue("localhost", server=True)
    store = DocumentStore(folder / "store")
    port = listener.getsockname()[1]
    service = Service(folder, port, authority, server, store)
    if crl:
        authority.revoke(service.identity("acme/device/stolen"))
    config = server_config(
        wrap(make_app(store, lambda: service.now_ms)),
        certificate=server.certificate,
        key=server.key,
        client_ca=authority.certificate,
        crl=authority.crl if crl else None,
        host="127.0.0.1",
        port=port,
    )
    with running(config, listener):
        yield service
