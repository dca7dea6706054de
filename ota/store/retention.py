"""Forgetting what is old, in small transactions, so that workers never wait long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, TextClause, text

from edgekit.errors import ConfigError
from ota.store.database import Store

DAY_MS = 86_400_000
CHUNK_ROWS = 2000
"""Most rows of one transaction."""
MIN_BOOTS_DAYS = 30
"""A device keeps rows that no store has acknowledged for two weeks, and sends them again: the
numbers of its boots must be known for longer than that, or they are stored twice."""

MAX_DAYS = 36_500
"""A hundred years."""

_BATCHES = text(
    "DELETE FROM batches WHERE id IN"
    " (SELECT id FROM batches WHERE received_ms < :before ORDER BY received_ms LIMIT :rows)"
)
# The newest row of an alarm in a boot that the store knows says whether it is raised.
_ALARMS = text(
    "DELETE FROM alarms WHERE id IN (SELECT a.id FROM alarms a LEFT JOIN alarm_states s"
    " ON s.device_id = a.device_id AND s.boot = a.boot AND s.seq = a.seq"
    " WHERE a.received_ms < :before AND s.seq IS NULL ORDER BY a.received_ms LIMIT :rows)"
)
_REJECTS = text(
    "DELETE FROM rejects WHERE id IN"
    " (SELECT id FROM rejects WHERE received_ms < :before ORDER BY received_ms LIMIT :rows)"
)
_OLD_BOOTS = text(
    "SELECT b.device_id, b.boot FROM boots b JOIN devices d ON d.id = b.device_id"
    " WHERE b.last_received_ms < :before AND (d.boot IS NULL OR d.boot <> b.boot)"
    " ORDER BY d.id LIMIT :rows"
)
# Workers lock the devices' rows, too: who waited for one looks at its boots anew.
_OLD_BOOTS_LOCKED = text(f"{_OLD_BOOTS} FOR UPDATE OF d")
_BOOT_STATES = text(
    "DELETE FROM alarm_states WHERE device_id = :device_id AND boot = :boot AND EXISTS"
    " (SELECT 1 FROM boots b WHERE b.device_id = alarm_states.device_id"
    " AND b.boot = alarm_states.boot AND b.last_received_ms < :before)"
)
_BOOTS = text(
    "DELETE FROM boots WHERE device_id = :device_id AND boot = :boot AND last_received_ms < :before"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long rows are kept after they were received, in days.

    Attributes:
        batches: Samples.
        alarms: What alarms did; the newest of each alarm stays while its boot is known.
        rejects: Messages that were refused.
        boots: Numbers of boots that nothing has come of since; the present boots stay.
    """

    batches: float = 90
    alarms: float = 400
    rejects: float = 30
    boots: float = 400

    def __post_init__(self) -> None:
        rows = (self.batches, self.alarms, self.rejects)
        is_right = all(0 <= days <= MAX_DAYS for days in rows)  # which NaN is not
        if not is_right or not MIN_BOOTS_DAYS <= self.boots <= MAX_DAYS:
            raise ConfigError(
                f"rows are kept for 0 to {MAX_DAYS} days, boots for {MIN_BOOTS_DAYS} at least",
                "Devices send again what they had while they were away",
            )


def prune(store: Store, retention: Retention, now_ms: int) -> dict[str, int]:
    """Delete what is too old.

    Returns:
        Table to how many rows were deleted.

    Raises:
        StoreError: The database refuses or does not answer; what was deleted by then is.
    """
    tables = {
        "batches": (_BATCHES, retention.batches),
        "alarms": (_ALARMS, retention.alarms),
        "rejects": (_REJECTS, retention.rejects),
    }
    deleted = {
        table: _in_chunks(store, partial(_prune_rows, statement, now_ms - int(days * DAY_MS)))
        for table, (statement, days) in tables.items()
    }
    boots = partial(_prune_boots, now_ms - int(retention.boots * DAY_MS))
    return {**deleted, "boots": _in_chunks(store, boots)}


def _in_chunks(store: Store, delete: Callable[[Connection], int]) -> int:
    total = 0
    while True:
        with store.writing() as connection:
            rows = delete(connection)
        total += rows
        if rows < CHUNK_ROWS:
            return total


def _prune_rows(statement: TextClause, before: int, connection: Connection) -> int:
    return connection.execute(statement, {"before": before, "rows": CHUNK_ROWS}).rowcount


def _prune_boots(before: int, connection: Connection) -> int:
    is_sqlite = connection.dialect.name == "sqlite"  # whose writers are alone
    query = _OLD_BOOTS if is_sqlite else _OLD_BOOTS_LOCKED
    found = connection.execute(query, {"before": before, "rows": CHUNK_ROWS}).all()
    rows = [{"device_id": row[0], "boot": row[1], "before": before} for row in found]
    if not rows:
        return 0
    connection.execute(_BOOT_STATES, rows)
    return connection.execute(_BOOTS, rows).rowcount
