"""The table ``[routing]``: an endpoint, and what the device's owner lets go there."""

from __future__ import annotations

import math
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from device.routing.policy import Policy, cloud_reasons, is_address
from device.tables import read_table, read_toml
from edgekit.errors import ConfigError, StorageError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """How requests are routed; keys and defaults of the table.

    Attributes:
        enabled: Whether anything may leave; the rest is checked all the same.
        base_url: Of the cloud, ``/v1`` included; https, but on this machine.
        model: The cloud's name of the model to ask.
        api_key_file: File of the key; None sends none.
        ca_file: Certificates (PEM) to trust instead of the public ones.
        state_file: Where the day's bytes are remembered.
        daily_bytes: Sent and received in a UTC day, TLS and headers among them.
        answer_bytes: What is set aside of it for an answer.
        reasons: For which reasons a request may leave.
        local_only: Pins every request to the device.
        local_clients: Clients (API keys' names, else addresses) whose requests are pinned.
        max_wait_s: Longest estimated wait for a slot; None for as long as the deadline allows.
        connections: To the cloud at once.
        connect_timeout_s: To connect, and to wait for one of the connections.
        read_timeout_s: Longest silence, before the first byte and between two.
        link_pause_s: After a connection that failed the link counts as down for that long.
        failures: In a row, that open the circuit breaker.
        backoff_s: Its first pause, at most.
        backoff_max_s: Its longest.
    """

    base_url: str
    model: str
    state_file: str
    daily_bytes: int
    enabled: bool = False
    api_key_file: str | None = None
    ca_file: str | None = None
    answer_bytes: int = 64 << 10
    reasons: tuple[str, ...] = ("context", "queue")
    local_only: bool = False
    local_clients: tuple[str, ...] = ()
    max_wait_s: float | None = None
    connections: int = 8
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    link_pause_s: float = 10.0
    failures: int = 3
    backoff_s: float = 2.0
    backoff_max_s: float = 300.0

    @property
    def policy(self) -> Policy:
        """What the device's owner allows."""
        return Policy(
            self.enabled,
            cloud_reasons(self.reasons, "[routing]"),
            self.daily_bytes,
            self.local_only,
            frozenset(self.local_clients),
        )

    @property
    def wait_limit_s(self) -> float:
        """``max_wait_s``, infinite where there is none."""
        return math.inf if self.max_wait_s is None else self.max_wait_s

    def require_clients(self, named: Collection[str] | None) -> None:
        """Refuse a client in ``local_clients`` that no request can come from.

        It would pin nothing, and what is misspelt must not leave.

        Args:
            named: Clients that have API keys; None where clients are known by their address.

        Raises:
            ConfigError: There is one.
        """
        for client in self.local_clients:
            if named is None and not is_address(client):
                raise ConfigError(
                    f"[routing] pins {client!r} in local_clients, which is no address",
                    "Without api_keys clients are known by their IP address",
                )
            if named is not None and client not in named:
                raise ConfigError(
                    f"[routing] pins {client!r} in local_clients, which has no API key",
                    f"With api_keys clients are: {', '.join(sorted(named))}",
                )

    def api_key(self) -> str | None:
        """Return the key.

        Raises:
            StorageError: The file cannot be read, or holds no key; it is not shown.
        """
        if self.api_key_file is None:
            return None
        try:
            key = Path(self.api_key_file).read_text(encoding="ascii").strip()
        except OSError as error:
            said = error.strerror or error
            raise StorageError(f"cannot read {self.api_key_file}: {said}", _KEY) from error
        except UnicodeError:
            key = ""
        if not key.isprintable() or len(key.split()) != 1:
            raise StorageError(f"{self.api_key_file} is not one key on one line", _KEY)
        return key

    def tls(self) -> ssl.SSLContext:
        """Return what checks the cloud's certificate.

        Raises:
            StorageError: ``ca_file`` cannot be read.
        """
        import certifi  # noqa: PLC0415 - the extra's, by httpx

        path = self.ca_file or certifi.where()
        try:
            return ssl.create_default_context(cafile=path)
        except OSError as error:  # SSLError is one
            raise StorageError(
                f"cannot read certificates of {path}: {error.strerror or error}",
                "Name a file of PEM certificates as ca_file of [routing]",
            ) from error


_KEY = "Write the cloud's key into the file that api_key_file of [routing] names"


def parse_routing(table: Mapping[str, Any], source: str = "[routing]") -> RoutingConfig:
    """Return the configuration of a table.

    Args:
        table: Keys and values, as TOML has them.
        source: What to call it in errors.

    Raises:
        ConfigError: An unknown or missing key, a wrong type or an impossible value.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source} is no table", "Write [routing] above its keys")
    config = read_table(RoutingConfig, table, source)
    cloud_reasons(config.reasons, source)
    _require_url(config.base_url, source)
    for key in ("connections", "failures", "connect_timeout_s", "read_timeout_s", "backoff_s"):
        if not getattr(config, key):
            raise ConfigError(f"{source}: {key} must be above 0")
    for key in ("model", "state_file"):
        if not getattr(config, key):
            raise ConfigError(f"{source}: {key} is empty")
    return config


def load_routing(path: Path) -> RoutingConfig:
    """Return the configuration of a file that has the table and nothing else.

    Raises:
        ConfigError: The file cannot be read; else see ``parse_routing``.
    """
    data = read_toml(path, "Choose another --routing")
    other = sorted(set(data) - {"routing"})
    if other or not isinstance(data.get("routing"), dict):
        said = f"has {other[0]!r} at its top level" if other else "has no table [routing]"
        raise ConfigError(f"{path} {said}", "Give one table [routing], nothing else")
    return parse_routing(data["routing"], f"[routing] of {path}")


def _require_url(url: str, source: str) -> None:
    """Refuse a URL that would send prompts and key in the clear, or somewhere unforeseen."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{source}: base_url is no URL: {error}") from error
    del port
    if not host or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(
            f"{source}: base_url is no plain URL", "Give https://HOST/v1, the key in a file"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and host in LOOPBACK):
        raise ConfigError(
            f"{source}: base_url is not https", "Only this machine is asked over http"
        )
