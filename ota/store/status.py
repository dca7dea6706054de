"""What the store holds, in a few numbers."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select, text

from ota.store.database import Store
from ota.store.schema import version_of
from ota.store.tables import AlarmStateTable, AlarmTable, BatchTable, DeviceTable, RejectTable


def status(store: Store) -> dict[str, str | int | None]:
    """Return the store's version, size and counts; reads all of ``batches``.

    Raises:
        StoreError: The database refuses or does not answer.
    """
    table = BatchTable
    with store.reading() as connection:
        batches, samples, payload_bytes, first_ms, last_ms = connection.execute(
            select(
                func.count(),
                func.coalesce(func.sum(table.samples), 0),
                func.coalesce(func.sum(func.length(table.payload)), 0),
                func.min(table.received_ms),
                func.max(table.received_ms),
            ).select_from(table)
        ).one()
        active = select(func.count()).where(AlarmStateTable.active)
        counts = [
            connection.execute(select(func.count()).select_from(one)).scalar_one()
            for one in (DeviceTable, AlarmTable, RejectTable)
        ]
        return {
            "version": version_of(connection),
            "database": "sqlite" if store.is_sqlite else "postgresql",
            "devices": counts[0],
            "batches": batches,
            "samples": int(samples),
            "payload_bytes": int(payload_bytes),
            "first_received_ms": first_ms,
            "last_received_ms": last_ms,
            "alarms": counts[1],
            "active_alarms": connection.execute(active).scalar_one(),
            "rejects": counts[2],
            "size_bytes": (
                _file_bytes(Path(str(store.url.database)))
                if store.is_sqlite
                else connection.execute(
                    text("SELECT pg_database_size(current_database())")
                ).scalar_one()
            ),
        }


def _file_bytes(path: Path) -> int:
    parts = (path, path.with_name(path.name + "-wal"))
    return sum(part.stat().st_size for part in parts if part.exists())
