"""TLS of the connection to the broker: TLS 1.3 alone, both sides show certificates.

The files are read anew for every connection, so a certificate that was renewed on disk is used from
the next one on. While they are the same, the context is kept: sessions are resumed with it, which
saves both certificate chains, on the wire and in CPU time.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import TelemetryError
from edgekit.tls import load_identity

_State = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.

    Attributes:
        ca: Authorities that may have signed the broker's certificate; no others are trusted.
        certificate: The device's, its chain after it.
        key: Its key, without a password.
    """

    ca: Path
    certificate: Path
    key: Path

    def state(self) -> _State | None:
        """Return what changes when a file does; None while one is missing."""
        try:
            found = [path.stat() for path in (self.ca, self.certificate, self.key)]
        except OSError:
            return None
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)


class ResumingContext(ssl.SSLContext):
    """A client's context that begins with the session of the connection before.

    Attributes:
        previous: That session; None begins anew.
        opened: Told of every socket before its handshake.
    """

    previous: ssl.SSLSession | None = None
    opened: Callable[[ssl.SSLSocket], None] | None = None

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Return the TLS side of a socket; see ``ssl.SSLContext``."""
        options.setdefault("session", self.previous)
        wrapped = super().wrap_socket(sock, *arguments, **options)
        if self.opened is not None:
            self.opened(wrapped)
        return wrapped

    def remember(self, connection: ssl.SSLSocket) -> None:
        """Keep a connection's session; call it late, for tickets come after the handshake."""
        if connection.session is not None and connection.session.has_ticket:
            self.previous = connection.session


class TlsContexts:
    """Makes the context of each connection.

    Args:
        files: What it is made of.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._state: _State | None = None
        self._context: ResumingContext | None = None

    @property
    def has_changed(self) -> bool:
        """Whether the files are others than those of the last context."""
        return self._files.state() != self._state

    def current(self) -> ResumingContext:
        """Return the context of the files as they are now.

        Raises:
            TelemetryError: A file cannot be read, is no PEM, or key and certificate do not match.
        """
        state = self._files.state()
        if self._context is None or state != self._state:
            self._context = None
            self._state = state
            self._context = _context(self._files)
        return self._context


def _context(files: TlsFiles) -> ResumingContext:
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(files.ca)
        load_identity(context, files.certificate, files.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise TelemetryError(
            f"the certificates of [telemetry] cannot be used: {reason}",
            f"Look at {files.ca}, {files.certificate} and {files.key}",
        ) from error
    return context
