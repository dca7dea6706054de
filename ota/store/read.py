"""Reading the store: batches in the order of their commits, devices, alarms.

An exporter keeps the cursor of the last batch it is done with and asks for what follows:

    store = open_store("sqlite:////var/lib/edgekit/store.db")
    for stored in batches_after(store, cursor, 100):
        use(stored.tenant, stored.device, stored.batch())
        cursor = stored.cursor

A cursor skips nothing: whoever adds batches holds a lock from giving the first number to the
commit, so a lower number never appears after a higher one (``docs/adr/0019``).
"""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import and_, func, select

from edgekit.contracts import seq_ranges
from edgekit.contracts.seq_ranges import Ranges
from ota.store.database import Store
from ota.store.records import StoredAlarm, StoredBatch, StoredDevice
from ota.store.tables import AlarmStateTable, AlarmTable, BatchTable, DeviceTable

MAX_LIMIT = 10_000
"""Most batches that one call returns."""


def batches_after(
    store: Store, cursor: int, limit: int, device: tuple[str, str] | None = None
) -> list[StoredBatch]:
    """Return the committed batches that follow a cursor, in the order of their commits.

    Args:
        store: Where.
        cursor: Of the last batch that the caller is done with; 0 for the oldest that is kept.
        limit: Most batches to return, 1 to :data:`MAX_LIMIT`.
        device: Tenant and device, for that one's batches alone.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    query = _batches().where(BatchTable.id > cursor).order_by(BatchTable.id)
    if device is not None:
        query = query.where(DeviceTable.tenant == device[0], DeviceTable.device == device[1])
    with store.reading() as connection:
        rows = connection.execute(query.limit(min(limit, MAX_LIMIT))).all()
    return [_batch(row) for row in rows]


def newest_batches(store: Store, tenant: str, device: str, samples: int) -> list[StoredBatch]:
    """Return the batches of a device that came last, the newest first, with that many samples.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    query = (
        _batches()
        .where(DeviceTable.tenant == tenant, DeviceTable.device == device)
        .order_by(BatchTable.id.desc())
        .limit(samples)
    )
    found, rows = 0, []
    with store.reading() as connection, connection.execute(query) as result:
        for row in result:
            rows.append(_batch(row))
            found += seq_ranges.count(rows[-1].seq)
            if found >= samples:
                break
    return rows


def last_cursor(store: Store) -> int:
    """Return the cursor of the newest batch, 0 if there is none: where only news matter.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    with store.reading() as connection:
        newest: int | None = connection.execute(select(func.max(BatchTable.id))).scalar_one()
    return newest or 0


def devices(store: Store, tenant: str | None = None) -> list[StoredDevice]:
    """Return all devices, or a tenant's, by name.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    query = _devices()
    if tenant is not None:
        query = query.where(DeviceTable.tenant == tenant)
    with store.reading() as connection:
        rows = connection.execute(query).all()
    return [_device(row) for row in rows]


def find_device(store: Store, tenant: str, device: str) -> StoredDevice | None:
    """Return one device; None if the store has never had a message of it.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    query = _devices().where(DeviceTable.tenant == tenant, DeviceTable.device == device)
    with store.reading() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else _device(row)


def active_alarms(store: Store, tenant: str | None = None) -> list[StoredAlarm]:
    """Return the alarms that are raised now, by device, the oldest first.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    now = AlarmStateTable
    is_newest = and_(
        now.device_id == AlarmTable.device_id,
        now.boot == AlarmTable.boot,
        now.seq == AlarmTable.seq,
    )
    query = _alarms().join(now, is_newest).where(now.active)
    if tenant is not None:
        query = query.where(DeviceTable.tenant == tenant)
    order = (DeviceTable.tenant, DeviceTable.device, AlarmTable.time_ms, AlarmTable.id)
    with store.reading() as connection:
        rows = connection.execute(query.order_by(*order)).all()
    return [StoredAlarm(*row) for row in rows]


def alarms_of(store: Store, tenant: str, device: str, limit: int = 100) -> list[StoredAlarm]:
    """Return what a device's alarms did, the newest first.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    query = (
        _alarms()
        .where(DeviceTable.tenant == tenant, DeviceTable.device == device)
        .order_by(AlarmTable.time_ms.desc(), AlarmTable.id.desc())
        .limit(limit)
    )
    with store.reading() as connection:
        rows = connection.execute(query).all()
    return [StoredAlarm(*row) for row in rows]


def ranges_of(text: str) -> Ranges:
    """Return the ranges of a column that holds them."""
    return tuple((first, last) for first, last in json.loads(text))


def _batches() -> Any:
    table = BatchTable
    return select(
        table.id,
        DeviceTable.tenant,
        DeviceTable.device,
        table.boot,
        table.clock,
        table.seq,
        table.first_ms,
        table.last_ms,
        table.received_ms,
        table.encoding,
        table.payload,
    ).join(DeviceTable, DeviceTable.id == table.device_id)


def _batch(row: Any) -> StoredBatch:
    found = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for a row's columns
    return StoredBatch(cursor=found.pop("id"), **{**found, "seq": ranges_of(found["seq"])})


def _devices() -> Any:  # SQLAlchemy 2.0 and 2.1 have unlike types for a select of many columns
    table = DeviceTable
    return select(
        table.tenant,
        table.device,
        table.first_received_ms,
        table.last_received_ms,
        table.state,
        table.state_received_ms,
        table.down_reason,
        table.boot,
        table.connection,
        table.details,
    ).order_by(table.tenant, table.device)


def _device(row: Any) -> StoredDevice:
    written = json.loads(row.details or "{}")
    details = {_text(name): _text(value) for name, value in written.items()}
    return StoredDevice(
        tenant=row.tenant,
        device=row.device,
        first_seen_ms=row.first_received_ms,
        last_seen_ms=row.last_received_ms,
        state=row.state,
        state_ms=row.state_received_ms,
        down_reason=row.down_reason,
        boot=row.boot,
        connection=row.connection,
        details=details,
        encodings=tuple(re.findall(r"[^\s,]+", str(details.get("encodings", "")))),
    )


def _text(value: Any) -> Any:
    """Return a text without halves of surrogate pairs, anything else as it is.

    JSON can escape them, UTF-8 cannot write them: one device's would fail the scrape of all.
    """
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _alarms() -> Any:
    table = AlarmTable
    return select(
        DeviceTable.tenant,
        DeviceTable.device,
        table.alarm,
        table.reading,
        table.state,
        table.severity,
        table.value,
        table.threshold,
        table.boot,
        table.seq,
        table.time_ms,
        table.clock,
        table.received_ms,
    ).join(DeviceTable, DeviceTable.id == table.device_id)
