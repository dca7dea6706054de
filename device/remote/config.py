"""The table ``[fleet]`` of the agent's file: who the device is, and whose word it takes.

Without the table nothing is pulled. What is said here can be changed on the device alone. Who the
device is and its files it may leave to the table ``[telemetry]``, which has the same.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from device.tables import read_table
from device.telemetry.config import TelemetryConfig
from edgekit.contracts.topics import Device, check_segment
from edgekit.errors import ConfigError, MessageError
from edgekit.tls import load_identity

SOURCE: Final = "[fleet]"
MAX_COHORTS: Final = 16
_REMEDY: Final = "docs/remote-config.md has the keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """Keys and defaults of the table.

    Attributes:
        url: Of the fleet's service, ``https://HOST[:PORT]``.
        tenant: Whose fleet the device belongs to.
        device: Its name there.
        certificate: PEM file of the device's certificate.
        key: PEM file of its key.
        ca_file: PEM file of the authorities that the service's certificate is held to. Public
            ones are not taken: a fleet's service has its own.
        cohorts: Groups that the device counts itself among.
        trusted_keys: File of the keys that sign documents. It comes with the agent.
        state_file: Where what was taken up is remembered; one named ``*.previous`` stands beside.
        interval_s: Between two looks while no notice comes; each is drawn between half and all.
        timeout_s: For one exchange, from the connection to its last byte.
        upload_hosts: Hosts, or ``HOST:PORT``, that diagnostics may be sent to, besides the
            service's.
    """

    url: str
    tenant: str
    device: str
    certificate: str
    key: str
    ca_file: str
    cohorts: tuple[str, ...] = ()
    trusted_keys: str = "/etc/edgekit/trusted-keys.json"
    state_file: str = "/var/lib/edgekit/remote.json"
    interval_s: float = 3600.0
    timeout_s: float = 30.0
    upload_hosts: tuple[str, ...] = ()

    @property
    def identity(self) -> Device:
        """Who the device is."""
        return Device(self.tenant, self.device)

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Where diagnostics may go: ``HOST:PORT``, in lower case."""
        own = urlsplit(self.url)
        others = (urlsplit(f"https://{host}") for host in self.upload_hosts)
        return frozenset(f"{one.hostname}:{one.port or 443}" for one in (own, *others))

    def tls(self) -> ssl.SSLContext:
        """Return what proves the device and checks the service.

        Raises:
            ConfigError: A file cannot be read, or is none.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            load_identity(context, self.certificate, self.key)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = f"{self.ca_file}, {self.certificate}, {self.key}"
            raise ConfigError(
                f"{SOURCE}: TLS cannot use {files}: {error}",
                "Give PEM files, the key without a password",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def parse_fleet(
    table: Mapping[str, Any], source: str = SOURCE, telemetry: TelemetryConfig | None = None
) -> FleetConfig:
    """Return the configuration of a table.

    Args:
        table: Keys and values, as TOML has them.
        source: What to call it in errors.
        telemetry: Has who the device is, and its files, where the table does not say.

    Raises:
        ConfigError: An unknown or missing key, a wrong type or an impossible value, or the two
            tables name different devices.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source} is no table", f"Write {SOURCE} above its keys")
    beside = {} if telemetry is None else _shared(telemetry)
    config = read_table(FleetConfig, {**beside, **table}, source)
    _check_names(config, source)
    if telemetry is not None and config.identity != telemetry.identity:
        raise ConfigError(
            f"{source} is of {config.identity.path}, [telemetry] of {telemetry.identity.path}",
            f"A device is one: leave tenant and device out of {source}",
        )
    _check_url(config.url, "url", source)
    for host in config.upload_hosts:
        _check_url(f"https://{host}", "upload_hosts", source)
    for key in ("interval_s", "timeout_s"):
        if not getattr(config, key) > 0:
            raise ConfigError(f"{source}: {key} must be above 0")
    for key in ("trusted_keys", "state_file"):
        if not Path(getattr(config, key)).is_absolute():
            raise ConfigError(f"{source}: {key} is no absolute path")
    return config


def _shared(telemetry: TelemetryConfig) -> dict[str, str]:
    """Return what both tables say, under this one's names."""
    return {
        "tenant": telemetry.tenant,
        "device": telemetry.device,
        "certificate": str(telemetry.certificate),
        "key": str(telemetry.key),
        "ca_file": str(telemetry.ca),
    }


def _check_names(config: FleetConfig, source: str) -> None:
    try:
        _ = config.identity
        for cohort in config.cohorts:
            check_segment(cohort, "cohort")
    except MessageError as error:
        raise ConfigError(f"{source}: {error.message}", _REMEDY) from error
    if len(config.cohorts) > MAX_COHORTS:
        raise ConfigError(f"{source}: there are over {MAX_COHORTS} cohorts")


def _check_url(url: str, key: str, source: str) -> None:
    """Refuse what is not a host that is asked over https."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{source}: {key} has no host and port: {error}", _REMEDY) from error
    rest = (parts.path.rstrip("/"), parts.query, parts.fragment, parts.username)
    if parts.scheme != "https" or not parts.hostname or any(rest):
        raise ConfigError(f"{source}: {key} is not a plain https://HOST[:PORT]", _REMEDY)
