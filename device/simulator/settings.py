"""What a simulation is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from device.simulator.outages import OutageRates
from device.telemetry.config import TelemetryConfig
from edgekit.contracts.topics import Device
from edgekit.errors import ConfigError

MAX_DEVICES = 1000
"""Of one process, which has a thread for each connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one process of a simulation is told.

    Attributes:
        broker: Name or address of the broker, as its certificate has it.
        port: Its port.
        ca: PEM file: authorities of the broker's certificate.
        certificates: Folder with ``NAME.pem`` and ``NAME-key.pem`` of every device.
        rings: Folder for the rings; where it has some, they go on.
        first: Number of the first device.
        devices: How many.
        tenant: Whose they are.
        prefix: What their names begin with.
        seed: Of all that is at random but the back-off's jitter.
        speed: Device seconds in a real second.
        sample_s: Device seconds between two samples.
        batch_s: Device seconds between two batches.
        keepalive_s: Device seconds of silence before a ping; at least a real one.
        encoding: Of batches.
        daily_bytes: Most bytes in a day of the device.
        outages: How often networks fail.
        spread_s: Device seconds in which devices start, evenly; 0 starts all at once.
        spells_s: Device seconds from one thing that goes wrong with a device to the next.
        drain: Add no samples to the rings; end once the store has acknowledged all that they hold.
        promises: File for what rings promised; None for none.
    """

    broker: str
    port: int
    ca: Path
    certificates: Path
    rings: Path
    first: int = 0
    devices: int = 1
    tenant: str = "sim"
    prefix: str = "d"
    seed: int = 0
    speed: float = 1.0
    sample_s: float = 10.0
    batch_s: float = 600.0
    keepalive_s: int = 240
    encoding: str = "zstd-ek1"
    daily_bytes: int = 4_000_000
    outages: OutageRates = field(default_factory=OutageRates)
    spread_s: float = 60.0
    spells_s: float = 14_400.0
    drain: bool = False
    promises: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= MAX_DEVICES:
            raise ConfigError(
                f"{self.devices} devices in one process: it can have 1 to {MAX_DEVICES}",
                "Use more processes",
            )
        if self.spread_s < 0:
            raise ConfigError(f"the start is spread over {self.spread_s:g} s, which is below 0")
        if self.spells_s <= 0:
            raise ConfigError(f"spells are {self.spells_s:g} s apart, which is not above 0")
        self.config(self.first + self.devices - 1)

    @property
    def numbers(self) -> range:
        """Of the devices."""
        return range(self.first, self.first + self.devices)

    def name(self, number: int) -> str:
        """Return a device's name."""
        return f"{self.prefix}{number:05d}"

    def identity(self, number: int) -> Device:
        """Return a device's identity."""
        return self.config(number).identity

    def config(self, number: int) -> TelemetryConfig:
        """Return a device's configuration, as its agent would read it.

        Raises:
            ConfigError: It means nothing.
        """
        name = self.name(number)
        return TelemetryConfig(
            broker=self.broker,
            port=self.port,
            ca=self.ca,
            certificate=self.certificates / f"{name}.pem",
            key=self.certificates / f"{name}-key.pem",
            tenant=self.tenant,
            device=name,
            sample_s=self.sample_s,
            batch_s=self.batch_s,
            daily_bytes=self.daily_bytes,
            encoding=self.encoding,
            ring=self.rings / f"{name}.db",
            keepalive_s=self.keepalive_s,
        )
