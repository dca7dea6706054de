"""The table ``[telemetry]`` of the agent's configuration; its keys are in ``docs/telemetry.md``."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from device.tables import read_table
from device.telemetry.alarm_rules import Rule, rules_from_config
from device.telemetry.tuning import Tuning
from edgekit.batch_encoding import ENCODINGS
from edgekit.contracts.topics import Device, check_segment
from edgekit.errors import ConfigError, MessageError, TelemetryError

TABLE = "telemetry"
MAX_IDENTITY_CHARS = 64
"""Of a certificate's common name (X.520's ub-common-name)."""
_AT_LEAST: Mapping[str, float] = {
    "port": 1,
    "sample_s": 5,
    "batch_s": 10,
    "daily_bytes": 100_000,
    "probe_daily_bytes": 0,
    "ring_bytes": 1 << 20,
    "ring_days": 1,
    "keepalive_s": 10,
    "session_expiry_s": 0,
    "will_delay_s": 0,
}
_AT_MOST: Mapping[str, float] = {
    "port": 65535,
    "sample_s": 3600,
    "batch_s": 86_400,
    "keepalive_s": 65535,
    "session_expiry_s": 14 * 86_400,
    "will_delay_s": 3600,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """What the telemetry is told.

    Attributes:
        broker: Name or address of the broker, as its certificate has it.
        port: Its port.
        ca: PEM file; authorities of the broker's certificate.
        certificate: PEM file of the device's certificate, common name ``TENANT/device/DEVICE``.
        key: PEM file of its key.
        tenant: Whose fleet the device belongs to.
        device: Its name.
        site: Where it stands; devices of one site that fall silent together are one alert. None
            names none.
        sample_s: Time between two samples.
        batch_s: Time between two batches: the longest that a sample waits while all is well.
        daily_bytes: Most bytes a UTC day on the broker's connection, headers included; alarms are
            sent all the same.
        encoding: Of batches.
        ring: The ring's file; the day's bytes are counted beside it.
        ring_bytes: Most bytes that it holds.
        ring_days: Samples that are older are dropped.
        keepalive_s: Longest silence on the connection.
        session_expiry_s: How long the broker keeps acknowledgements and notices for a device that
            is away.
        will_delay_s: A loss that is over within this is told nobody.
        probe: ``ADDRESS:PORT`` of a UDP echo for measuring packet loss; None measures none.
        probe_daily_bytes: Most bytes a day for it.
        modem: Ask ModemManager for the radio's strengths.
        tegrastats: Run a ``tegrastats`` for what sysfs does not show, such as the memory
            controller's load; where both have a reading sysfs counts.
        alarms: Rules by name.
    """

    broker: str
    ca: Path
    certificate: Path
    key: Path
    tenant: str
    device: str
    site: str | None = None
    port: int = 8883
    sample_s: float = 10.0
    batch_s: float = 600.0
    daily_bytes: int = 4_000_000
    encoding: str = ENCODINGS[0]
    ring: Path = Path("/var/lib/edgekit/telemetry/ring.db")
    ring_bytes: int = 64 << 20
    ring_days: float = 14.0
    keepalive_s: int = 240
    session_expiry_s: int = 86_400
    will_delay_s: int = 60
    probe: str | None = None
    probe_daily_bytes: int = 8_000_000
    modem: bool = False
    tegrastats: bool = False
    alarms: Mapping[str, Rule] = field(default_factory=lambda: rules_from_config({}))

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ConfigError(f"encoding {self.encoding!a} is none of {', '.join(ENCODINGS)}")
        for name, least in _AT_LEAST.items():
            value, most = getattr(self, name), _AT_MOST.get(name, float("inf"))
            if not least <= value <= most:
                raise ConfigError(f"{name} is {value}, and must be {least:g} to {most:g}")
        if self.batch_s < self.sample_s:
            raise ConfigError(f"batch_s {self.batch_s:g} is below sample_s {self.sample_s:g}")
        if not self.broker:
            raise ConfigError("broker is empty", "Name the broker as its certificate does")
        if self.site is not None:
            _check_site(self.site)
        path = self.identity.path
        if len(path) > MAX_IDENTITY_CHARS:
            raise ConfigError(
                f"{path} has {len(path)} characters, a certificate's name {MAX_IDENTITY_CHARS}",
                "Choose shorter names for tenant and device",
            )
        if self.probe is not None:
            self.probe_address  # noqa: B018 - it is checked

    @property
    def identity(self) -> Device:
        """The device.

        Raises:
            ConfigError: Its tenant or name cannot be a level of a topic.
        """
        try:
            return Device(self.tenant, self.device)
        except MessageError as error:
            raise ConfigError(error.message) from error

    @property
    def tuning(self) -> Tuning:
        """What of it may change while it runs."""
        return Tuning(
            sample_s=self.sample_s,
            batch_s=self.batch_s,
            daily_bytes=self.daily_bytes,
            probe_daily_bytes=self.probe_daily_bytes,
            rules=self.alarms,
        )

    @property
    def probe_address(self) -> tuple[str, int]:
        """The reflector's address and port.

        Raises:
            ConfigError: There is none, or it is a name: looking one up could hold up the alarms.
        """
        host, _, port = (self.probe or "").rpartition(":")
        try:
            return str(ipaddress.IPv4Address(host)), int(port)
        except ValueError as error:
            raise ConfigError(f"probe {self.probe!a} is not ADDRESS:PORT with IPv4") from error


def _check_site(site: str) -> None:
    """Refuse a site that could not stand where a tenant or a device can.

    Raises:
        ConfigError: It is one.
    """
    try:
        check_segment(site, "site")
    except MessageError as error:
        raise ConfigError(error.message) from error


def parse_telemetry(table: Any) -> TelemetryConfig:
    """Return the configuration of a parsed table.

    Raises:
        ConfigError: An unknown or missing key, another type, or what means nothing.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{TABLE} is no table", f"Write [{TABLE}] above its keys")
    plain = {name: value for name, value in table.items() if name != "alarms"}
    config = read_table(TelemetryConfig, plain, f"[{TABLE}]", without=("alarms",))
    if "alarms" not in table:
        return config
    try:
        return replace(config, alarms=rules_from_config(table["alarms"]))
    except TelemetryError as error:
        raise ConfigError(f"[{TABLE}] {error.message}", error.remedy) from error
