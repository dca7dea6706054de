"""Who is at the other end: the client's certificate, handed to the application by uvicorn.

uvicorn (0.54) checks client certificates and tells applications nothing of them: the ASGI TLS
extension is not implemented there (github.com/encode/uvicorn/pull/1119). ``TlsProtocol`` fills in
the part of it that is needed, ``scope["extensions"]["tls"]["client_cert_chain"]``, so that the
application runs unchanged under a server that has the extension. A header set by a proxy is not
looked at: whoever reaches the port could write it. A balancer in front passes TLS through.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgekit.contracts.fields import show
from edgekit.contracts.topics import Device
from edgekit.errors import MessageError, TrustError

LIFE_S: Final = 120.0
"""A connection has this long, whatever it does: devices open one for each exchange."""
_REMEDY: Final = "Give the device a certificate with the subject CN=TENANT/device/DEVICE"


class TlsProtocol(H11Protocol):
    """HTTP/1.1 that tells the application of the client's certificate, and ends by itself."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take a connection; the handshake is over when this is called."""
        super().connection_made(transport)
        self._end = self.loop.call_later(LIFE_S, transport.abort)
        found = transport.get_extra_info("ssl_object")
        self.app = _telling(
            self.app, None if found is None else found.getpeercert(binary_form=True)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._end.cancel()
        super().connection_lost(exc)


def _telling(app: ASGIApp, certificate: bytes | None) -> ASGIApp:
    """Return an application that is told of a certificate (DER)."""
    chain = [] if certificate is None else [ssl.DER_cert_to_PEM_cert(certificate)]

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        tls = {"client_cert_chain": chain, "client_cert_error": None}
        extensions = {**scope.get("extensions", {}), "tls": tls}
        await app({**scope, "extensions": extensions}, receive, send)

    return told


def device_of(scope: Scope) -> Device:
    """Return the device that asks: the subject of its certificate, which the handshake has proven.

    Raises:
        TrustError: There is no certificate, or its subject names no device.
    """
    tls: dict[str, Any] = scope.get("extensions", {}).get("tls", {})
    chain = list(tls.get("client_cert_chain", ()))
    if not chain or tls.get("client_cert_error"):
        raise TrustError("the client has shown no certificate", _REMEDY)
    try:
        subject = x509.load_pem_x509_certificate(chain[0].encode()).subject
    except ValueError as error:
        raise TrustError("the client's certificate cannot be read", _REMEDY) from error
    names = [name.value for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1 or not isinstance(names[0], str):
        raise TrustError(f"the client's certificate has {len(names)} common names", _REMEDY)
    return device_named(names[0])


def device_named(path: str) -> Device:
    """Return the device of ``TENANT/device/DEVICE``.

    Raises:
        TrustError: It is not of that form.
    """
    parts = path.split("/")
    if len(parts) != 3 or parts[1] != "device":
        raise TrustError(f"{show(path)} names no device", _REMEDY)
    try:
        return Device(parts[0], parts[2])
    except MessageError as error:
        raise TrustError(f"{show(path)} names no device: {error.message}", _REMEDY) from error
