"""The application under uvicorn, with TLS that asks every client for a certificate."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from edgekit.tls import server_context
from ota.config.peer import TlsProtocol

MAX_CONNECTIONS: Final = 1000


class _Config(uvicorn.Config):
    """uvicorn's, with a context of ours: its own knows no revocation lists."""

    def __init__(self, app: ASGIApp, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(app, **options)
        self._context = context

    def load(self) -> None:
        """Load what uvicorn loads."""
        super().load()
        self.ssl = self._context


def server_config(
    app: ASGIApp,
    *,
    certificate: Path,
    key: Path,
    client_ca: Path,
    crl: Path | None = None,
    host: str,
    port: int,
) -> uvicorn.Config:
    """Return how uvicorn serves it.

    Args:
        app: The application.
        certificate: PEM file of the service's certificate and those between it and its authority.
        key: PEM file of its key.
        client_ca: PEM file of the authorities of devices' certificates.
        crl: PEM file of the certificates that they have revoked; read once.
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        ConfigError: A file cannot be read, or is none.
    """
    return _Config(
        app,
        server_context(certificate, key, client_ca, crl),
        host=host,
        port=port,
        http=TlsProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
