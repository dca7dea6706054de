"""Settings of an ingest worker."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.contracts.topics import SEGMENT, up_filters
from edgekit.errors import ConfigError, first_line
from edgekit.tls import load_identity

PORTS = {"mqtt": 1883, "mqtts": 8883}
MAX_RECEIVE = 65_535
MAX_GROUP = 5000
"""Statements name all devices of a group, and databases bound the values of a statement."""
_MAX_STRING = 65_535
_MAX_SESSION_S = 2**32 - 1
"""MQTT's value for sessions that never end, which a broker would keep messages for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a worker is told.

    Attributes:
        name: Its MQTT client id: another worker's is another, and this one's is the same after a
            restart, so that it gets what it had not acknowledged.
        broker: ``mqtts://HOST:PORT``, or ``mqtt://`` for a network that is trusted.
        ca: PEM file of the authorities that sign the broker's certificate; None for the system's.
        certificate: PEM file of the worker's own, or None.
        key: Of the certificate.
        tenant: Whose devices; ``+`` for everyone's.
        group: Name of the shared subscription: workers of one name share the messages.
        group_messages: Most messages of one transaction.
        group_ms: How long a message waits for others.
        receive_maximum: Most messages that the broker sends before it has acknowledgements; with
            the largest packet it bounds the memory.
        max_packet_bytes: Largest message that the broker may send.
        session_s: How long the broker keeps for a worker that is gone.
        acknowledgement_expiry_s: How long the broker keeps an acknowledgement for a device.
        keepalive_s: MQTT's.
    """

    name: str
    broker: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    tenant: str = "+"
    group: str = "ingest"
    group_messages: int = 100
    group_ms: int = 200
    receive_maximum: int = 200
    max_packet_bytes: int = 1024 * 1024
    session_s: int = 3600
    acknowledgement_expiry_s: int = 600
    keepalive_s: int = 30

    def __post_init__(self) -> None:
        is_secure = self.address()[2]
        up_filters(self.tenant)
        if not self.name.isprintable() or not 1 <= len(self.name.encode()) <= _MAX_STRING:
            raise ConfigError(f"a worker cannot be called {self.name!a}", "Give it a --name")
        if not SEGMENT.fullmatch(self.group):
            raise ConfigError(
                f"a group cannot be called {self.group!a}",
                "Take 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or digit",
            )
        if not 0 <= self.session_s < _MAX_SESSION_S:
            raise ConfigError(f"session_s must be 0 to {_MAX_SESSION_S - 1}")
        if not is_secure and (self.ca or self.certificate or self.key):
            raise ConfigError(
                f"a certificate is of no use on the way to {self.broker!a}, which has no TLS",
                "Write mqtts://HOST:PORT, or leave --ca, --certificate and --key out",
            )
        if not 1 <= self.receive_maximum <= MAX_RECEIVE:
            raise ConfigError(f"receive_maximum must be 1 to {MAX_RECEIVE}")
        if not 1 <= self.group_messages <= MAX_GROUP or self.group_ms < 0:
            raise ConfigError(f"group_messages must be 1 to {MAX_GROUP}, group_ms at least 0")
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a certificate and its key go together")

    @property
    def filters(self) -> tuple[str, ...]:
        """Topic filters of the shared subscription."""
        return tuple(f"$share/{self.group}/{one}" for one in up_filters(self.tenant))

    def address(self) -> tuple[str, int, bool]:
        """Return the broker's host and port, and whether to use TLS.

        Raises:
            ConfigError: The URL is none of a broker.
        """
        try:
            parts = urlsplit(self.broker)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"the broker's URL cannot be read: {error}") from error
        if parts.username is not None or parts.password is not None:
            # Not shown: a password may be in it.
            raise ConfigError(
                "the broker's URL names a user", "Workers are known by --certificate and --key"
            )
        more = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in PORTS or not parts.hostname or port == 0 or more:
            raise ConfigError(
                f"{self.broker!a} is no broker's URL", "Write mqtts://HOST:PORT or mqtt://HOST:PORT"
            )
        return parts.hostname, port or PORTS[parts.scheme], parts.scheme == "mqtts"

    def tls(self) -> ssl.SSLContext | None:
        """Return the context of TLS; None without.

        Raises:
            ConfigError: A file cannot be read, or is no certificate or key.
        """
        if not self.address()[2]:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None and self.key is not None:
                load_identity(context, self.certificate, self.key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"TLS with the broker cannot be set up: {first_line(error)}",
                "Name the PEM files of the authority, the certificate and its key",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context
