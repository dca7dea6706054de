"""Stored batches for tests of the exporter, and a source that needs no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.batch_encoding import compress
from edgekit.contracts.series import Number
from edgekit.contracts.telemetry import Batch, Sample
from edgekit.errors import StoreAwayError
from ota.store.records import StoredAlarm, StoredBatch, StoredDevice

BOOT = "1f0a52c3d4e5b6a7-3f9c01d2"


def stored(
    cursor: int,
    rows: Mapping[int, Mapping[str, Number | None]],
    *,
    device: str = "orin-1",
    tenant: str = "acme",
    clock: str = "synced",
    received_ms: int | None = None,
) -> StoredBatch:
    """Return a stored batch.

    Args:
        cursor: Its number.
        rows: Readings by their time in milliseconds.
        device: Whose.
        tenant: Whose.
        clock: What the times are worth.
        received_ms: When the cloud had it; when its last row was, if not given.
    """
    samples = [
        Sample(boot=BOOT, seq=cursor * 10_000 + index, time_ms=time_ms, clock=clock, values=values)
        for index, (time_ms, values) in enumerate(rows.items(), start=1)
    ]
    batch = Batch.of_samples(samples)
    first_ms, last_ms = min(rows), max(rows)
    return StoredBatch(
        cursor=cursor,
        tenant=tenant,
        device=device,
        boot=BOOT,
        clock=clock,
        seq=batch.seq,
        first_ms=first_ms,
        last_ms=last_ms,
        received_ms=last_ms if received_ms is None else received_ms,
        encoding="zstd-ek1",
        payload=compress(batch.to_bytes(), "zstd-ek1"),
    )


@dataclass
class ListSource:
    """Batches, devices and alarms of a list; counts how often it is asked.

    Attributes:
        batches: In the order of their numbers.
        known: Devices.
        alarms: Raised now.
        away: Whether the store does not answer.
        asked: Questions so far.
    """

    batches: list[StoredBatch] = field(default_factory=list)
    known: list[StoredDevice] = field(default_factory=list)
    alarms: list[StoredAlarm] = field(default_factory=list)
    away: bool = False
    asked: int = 0

    def batches_after(self, cursor: int, limit: int) -> Sequence[StoredBatch]:
        """Return what follows a cursor."""
        self._ask()
        return [one for one in self.batches if one.cursor > cursor][:limit]

    def devices(self) -> Sequence[StoredDevice]:
        """Return the devices."""
        self._ask()
        return self.known

    def active_alarms(self) -> Sequence[StoredAlarm]:
        """Return the alarms."""
        self._ask()
        return self.alarms

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            raise StoreAwayError("the store does not answer: connection refused")


def device_of(
    name: str,
    last_seen_ms: int,
    state: str | None = "up",
    down_reason: str | None = None,
    details: Mapping[str, str | Number] | None = None,
    **more: str,
) -> StoredDevice:
    """Return a device of the store."""
    return StoredDevice(
        tenant="acme",
        device=name,
        first_seen_ms=0,
        last_seen_ms=last_seen_ms,
        state=state,
        state_ms=None if state is None else last_seen_ms,
        down_reason=down_reason,
        boot=BOOT,
        connection=1,
        details={**(details or {}), **more},
        encodings=("zstd-ek1",),
    )


def alarm_of(name: str, alarm: str, reading: str, severity: str = "major") -> StoredAlarm:
    """Return an alarm that is raised."""
    return StoredAlarm(
        tenant="acme",
        device=name,
        alarm=alarm,
        reading=reading,
        state="raised",
        severity=severity,
        value=96.0,
        threshold=90.0,
        boot=BOOT,
        seq=1,
        time_ms=0,
        clock="synced",
        received_ms=0,
    )
