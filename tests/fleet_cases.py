"""Devices' messages for tests of the store and of ingest, and what the store then holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager

from edgekit.batch_encoding import compress
from edgekit.contracts.series import Number
from edgekit.contracts.telemetry import Alarm, Batch, Health, Sample
from edgekit.contracts.topics import Device
from ota.ingest.messages import Arrived, read_message
from ota.store.database import Store, connect
from ota.store.items import NewAlarm, NewBatch, NewHealth
from ota.store.read import batches_after
from ota.store.schema import migrate, open_store

START_MS = 1_784_970_508_000
BOOT = "1f0a52c3d4e5b6a7-3f9c01d2"
DEVICE = Device("acme", "orin-1")


def sample(seq: int, boot: str = BOOT, values: Mapping[str, Number | None] | None = None) -> Sample:
    """Return a sample whose values follow from its number: a double or a swap shows."""
    found = values or {"gpu_mhz": seq, "temperature_celsius.cpu": 40 + seq % 7 / 4, "uptime_s": 5}
    return Sample(boot=boot, seq=seq, time_ms=START_MS + 10_000 * seq, clock="synced", values=found)


def batch_of(numbers: Iterable[int], boot: str = BOOT) -> Batch:
    """Return a batch of some samples."""
    return Batch.of_samples([sample(seq, boot) for seq in numbers])


def batch_payload(numbers: Iterable[int], boot: str = BOOT, encoding: str = "zstd-ek1") -> bytes:
    """Return the payload of a batch of some samples."""
    return compress(batch_of(numbers, boot).to_bytes(), encoding)


def alarm(seq: int, state: str = "raised", **other: object) -> Alarm:
    """Return an alarm."""
    fields: dict[str, object] = {
        "boot": BOOT,
        "seq": seq,
        "time_ms": START_MS + 10_000 * seq,
        "clock": "synced",
        "alarm": "temperature",
        "reading": "temperature_celsius.cpu",
        "state": state,
        "severity": "major",
        "value": 91.5,
        "threshold": 90,
        **other,
    }
    return Alarm(**fields)  # type: ignore[arg-type]


def health(state: str = "up", connection: int = 1, **other: object) -> Health:
    """Return a birth or will."""
    fields: dict[str, object] = {
        "boot": BOOT,
        "time_ms": START_MS,
        "clock": "synced",
        "state": state,
        "connection": connection,
        "details": {"encodings": "zstd-ek1,zstd,json", "version": "1.0"} if state == "up" else {},
        **other,
    }
    return Health(**fields)  # type: ignore[arg-type]


def arrived(
    kind: str, payload: bytes, device: Device = DEVICE, encoding: str = "zstd-ek1"
) -> Arrived:
    """Return a message as a worker receives it.

    Args:
        kind: Channel and type, such as ``m/batch``.
        payload: Of the message.
        device: Whose.
        encoding: What the message says of it.
    """
    topic = f"ek/{device.path}/{kind}"
    return Arrived(topic, payload, encoding, START_MS, mid=1, qos=1, connection=1)


def stored_samples(store: Store, device: Device | None = None) -> Counter[tuple[str, str, int]]:
    """Return how often each sample is stored, by device, boot and number; checks their values."""
    whose = None if device is None else (device.tenant, device.device)
    found: Counter[tuple[str, str, int]] = Counter()
    cursor = 0
    while batches := batches_after(store, cursor, 500, whose):
        for stored in batches:
            batch = stored.batch()
            assert (batch.boot, batch.clock, batch.seq) == (stored.boot, stored.clock, stored.seq)
            assert (min(batch.times_ms), max(batch.times_ms)) == (stored.first_ms, stored.last_ms)
            for one in batch.samples():
                assert one == sample(one.seq, one.boot), f"{stored.device}: {one}"
                found[f"{stored.tenant}/{stored.device}", one.boot, one.seq] += 1
        cursor = batches[-1].cursor
    return found


@contextmanager
def migrated(url: str) -> Iterator[Store]:
    """Make the tables of a store, and open it."""
    with closing(connect(url)) as plain:
        migrate(plain)
    with closing(open_store(url)) as opened:
        yield opened


def batch_item(first: int, last: int, device: Device = DEVICE, boot: str = BOOT) -> NewBatch:
    """Return a batch as ingest gives it to the store."""
    payload = batch_payload(range(first, last + 1), boot)
    item = read_message(arrived("m/batch", payload, device))
    assert isinstance(item, NewBatch)
    return item


def alarm_item(message: Alarm, device: Device = DEVICE) -> NewAlarm:
    """Return an alarm as ingest gives it to the store."""
    return NewAlarm(device=device, received_ms=START_MS, alarm=message)


def health_item(message: Health, received_ms: int = START_MS) -> NewHealth:
    """Return a birth or will as ingest gives it to the store."""
    return NewHealth(device=DEVICE, received_ms=received_ms, health=message)
