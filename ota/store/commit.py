"""Writing the store: a group of messages in one transaction, every sample and alarm once.

The rows of ``devices`` are locked in the order of their ids before anything of them is read, so two
workers that have messages of one device take turns; what a worker then sees as not stored nobody
else can store. Batches get their numbers last, under a lock of their own that is held to the
commit, so that they appear in the order of the numbers (see :mod:`ota.store.read`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select, text, update

from edgekit.contracts import seq_ranges
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.topics import Device
from edgekit.errors import StoreAwayError
from ota.store.cut import cut_batch
from ota.store.database import Store, lock_cursor
from ota.store.items import NewAlarm, NewBatch, NewHealth, NewItem, Reject, reject_of
from ota.store.now import write_alarms_and_health
from ota.store.read import ranges_of
from ota.store.tables import AlarmTable, BatchTable, BootTable, DeviceTable, RejectTable

MAX_RANGES = seq_ranges.MAX_RANGES
"""Most ranges that a boot's numbers may be torn into; an honest device has a few."""
MAX_REJECTS = 10_000
"""Most rejects that are kept."""
MAX_REJECT_BYTES = 1024
"""Most that is kept of a payload that was refused."""

MAX_REMEMBERED = 200_000
"""Most devices whose ids a worker remembers; some 300 bytes each."""

_ADD_DEVICE = text(
    "INSERT INTO devices (tenant, device, first_received_ms, last_received_ms)"
    " VALUES (:tenant, :device, :now, :now) ON CONFLICT (tenant, device) DO NOTHING"
)
_PUT_BOOT = text(
    "INSERT INTO boots (device_id, boot, stored, first_received_ms, last_received_ms, born)"
    " VALUES (:device_id, :boot, :stored, :now, :now, :born)"
    " ON CONFLICT (device_id, boot) DO UPDATE SET stored = excluded.stored,"
    " last_received_ms = excluded.last_received_ms, born = excluded.born"
)
_CAP_REJECTS = text("DELETE FROM rejects WHERE id <= (SELECT max(id) FROM rejects) - :kept")
_ALARM_COLUMNS = (
    "boot",
    "seq",
    "time_ms",
    "clock",
    "alarm",
    "reading",
    "state",
    "severity",
    "value",
    "threshold",
)
"""What the table and the message call the same."""


@dataclass(slots=True)
class Boot:
    """A boot's numbers in a transaction.

    Attributes:
        stored: What is stored, with what this transaction adds.
        came: The numbers of this transaction's messages, new or not.
        born: See ``boots.born``.
        changed: Whether it is to be written.
    """

    stored: Ranges = ()
    came: Ranges = ()
    born: bool = False
    changed: bool = False


@dataclass(slots=True)
class Committed:
    """What a transaction did.

    Attributes:
        stored: What to acknowledge: device to boot to numbers that are stored for good. These are
            the stored ranges that the messages' numbers are in, so that a device that missed an
            acknowledgement learns of it with the next.
        samples: Added.
        known_samples: That were stored already.
        alarms: Added.
        known_alarms: That were stored already.
        health: Births and wills.
        refused: Messages that the store will not have; the rejects have them.
    """

    stored: dict[Device, dict[str, Ranges]] = field(default_factory=dict)
    samples: int = 0
    known_samples: int = 0
    alarms: int = 0
    known_alarms: int = 0
    health: int = 0
    refused: list[Reject] = field(default_factory=list)


class Writer:
    """Writes groups; remembers the devices' ids between them.

    Args:
        store: Where.
        keeps: Whether the table gets a message that the store itself refuses.
    """

    def __init__(self, store: Store, keeps: Callable[[Reject], bool] = lambda _: True) -> None:
        self._store, self._keeps = store, keeps
        self._ids: dict[Device, int] = {}

    def commit(self, items: Sequence[NewItem], rejects: Sequence[Reject] = ()) -> Committed:
        """Store a group; when this returns, it is committed.

        Raises:
            StoreAwayError: The database does not answer, is busy, or chose this transaction to
                end a deadlock: committing the group again stores nothing twice.
            StoreError: The database refuses the group, for a reason that stays.
        """
        done = Committed()
        added: dict[Device, int] = {}
        try:
            with self._store.writing() as connection:
                if items:
                    added = self._write(connection, items, done)
                kept = [*rejects, *filter(self._keeps, done.refused)]
                if kept:
                    _write_rejects(connection, kept)
        except BaseException:
            # A row that is not where it was is looked for again.
            self._ids.clear()
            raise
        if len(self._ids) > MAX_REMEMBERED:
            self._ids.clear()
        self._ids.update(added)
        return done

    def _write(
        self, connection: Connection, items: Sequence[NewItem], done: Committed
    ) -> dict[Device, int]:
        now = max(item.received_ms for item in items)
        ids = self._lock(connection, {item.device for item in items}, now)
        heard = {ids[item.device] for item in items if not _is_down(item)}
        # A group that waited for the store does not make a device's last sign of life older.
        seen = update(DeviceTable).where(
            DeviceTable.id.in_(heard), DeviceTable.last_received_ms < now
        )
        connection.execute(seen.values(last_received_ms=now))
        boots = _boots(connection, ids, items)
        batches: list[dict[str, Any]] = []
        alarms: list[NewAlarm] = []
        health: list[NewHealth] = []
        for item in items:
            if isinstance(item, NewHealth):
                health.append(item)
                continue
            boot = boots[ids[item.device], _boot_of(item)]
            if isinstance(item, NewBatch):
                batches += _take_batch(item, ids[item.device], boot, done)
            elif _take_alarm(item, boot, done):
                alarms.append(item)
        if alarms:
            connection.execute(insert(AlarmTable), [_alarm_row(a, ids[a.device]) for a in alarms])
        if alarms or health:
            born = {key: boot.born for key, boot in boots.items()}
            taken = write_alarms_and_health(connection, ids, alarms, health, born)
            for key in taken:
                boots[key].born = boots[key].changed = True
            done.health = len(health)
        _write_boots(connection, boots, now)
        if batches:
            lock_cursor(connection)
            connection.execute(insert(BatchTable), batches)
        done.stored = _to_acknowledge(ids, boots)
        return ids

    def _lock(self, connection: Connection, devices: set[Device], now: int) -> dict[Device, int]:
        """Return the devices' ids; their rows are locked, and there are rows."""
        unknown = sorted(
            (device for device in devices if device not in self._ids), key=lambda d: d.path
        )
        ids = {device: self._ids[device] for device in devices if device in self._ids}
        if unknown:
            # In one order in all workers, as the locks below.
            rows = [{"tenant": d.tenant, "device": d.device, "now": now} for d in unknown]
            connection.execute(_ADD_DEVICE, rows)
            ids |= _find_devices(connection, unknown)
        _lock_rows(connection, ids)
        return ids


def _lock_rows(connection: Connection, ids: Mapping[Device, int]) -> None:
    """Lock the devices' rows, and make sure that they are still those that were remembered.

    Raises:
        StoreAwayError: They are not: a backup was restored meanwhile.
    """
    table = DeviceTable
    query = (
        select(table.id, table.tenant, table.device)
        .where(table.id.in_(sorted(ids.values())))
        .order_by(table.id)
        .with_for_update()  # SQLite, whose writers are alone, leaves it out
    )
    found = {Device(tenant, device): key for key, tenant, device in connection.execute(query)}
    if found != ids:
        raise StoreAwayError("devices have other rows than a moment ago", "Try again")


def _find_devices(connection: Connection, devices: Sequence[Device]) -> dict[Device, int]:
    table = DeviceTable
    query = select(table.id, table.tenant, table.device).where(
        table.tenant.in_({d.tenant for d in devices}), table.device.in_({d.device for d in devices})
    )
    found = {Device(tenant, device): key for key, tenant, device in connection.execute(query)}
    return {device: found[device] for device in devices}


def _is_down(item: NewItem) -> bool:
    """Whether a message may be a will: the broker's, long after the device was heard of."""
    return isinstance(item, NewHealth) and item.health.state == "down"


def _boot_of(item: NewItem) -> str:
    if isinstance(item, NewBatch):
        return item.boot
    return item.alarm.boot if isinstance(item, NewAlarm) else item.health.boot


def _boots(
    connection: Connection, ids: Mapping[Device, int], items: Iterable[NewItem]
) -> dict[tuple[int, str], Boot]:
    """Return the boots that a group is of; those that are new are empty."""
    boots = {(ids[item.device], _boot_of(item)): Boot() for item in items}
    query = select(BootTable.device_id, BootTable.boot, BootTable.stored, BootTable.born).where(
        BootTable.device_id.in_({device for device, _ in boots}),
        BootTable.boot.in_({boot for _, boot in boots}),
    )
    for device, name, stored, born in connection.execute(query):
        boot = boots.get((device, name))
        if boot is not None:  # two devices may each have a boot of the other's name
            boot.stored, boot.born = ranges_of(stored), born
    return boots


def _take_batch(
    item: NewBatch, device_id: int, boot: Boot, done: Committed
) -> list[dict[str, Any]]:
    """Return the row of what is new in a batch, if anything is."""
    new = seq_ranges.difference(item.seq, boot.stored)
    total, added = seq_ranges.count(item.seq), seq_ranges.count(new)
    stored = seq_ranges.union(boot.stored, new)
    if len(stored) > MAX_RANGES:
        done.refused.append(_torn(item))
        return []
    boot.came = seq_ranges.union(boot.came, item.seq)
    done.samples += added
    done.known_samples += total - added
    if not added:
        return []
    boot.stored, boot.changed = stored, True
    kept = item if added == total else cut_batch(item, new)
    return [
        {
            "device_id": device_id,
            "boot": kept.boot,
            "clock": kept.clock,
            "seq": _text(kept.seq),
            "samples": added,
            "first_ms": kept.first_ms,
            "last_ms": kept.last_ms,
            "received_ms": kept.received_ms,
            "encoding": kept.encoding,
            "payload": kept.payload,
        }
    ]


def _take_alarm(item: NewAlarm, boot: Boot, done: Committed) -> bool:
    """Whether an alarm is new; its number is then taken."""
    number = ((item.alarm.seq, item.alarm.seq),)
    known = seq_ranges.contains(boot.stored, item.alarm.seq)
    stored = boot.stored if known else seq_ranges.union(boot.stored, number)
    if len(stored) > MAX_RANGES:
        done.refused.append(_torn(item))
        return False
    boot.came = seq_ranges.union(boot.came, number)
    if known:
        done.known_alarms += 1
        return False
    boot.stored, boot.changed = stored, True
    done.alarms += 1
    return True


def _torn(item: NewBatch | NewAlarm) -> Reject:
    error = f"boot {_boot_of(item)} would be in more than {MAX_RANGES} ranges"
    return reject_of(item, "ranges", error)


def _alarm_row(item: NewAlarm, device_id: int) -> dict[str, Any]:
    row = {name: getattr(item.alarm, name) for name in _ALARM_COLUMNS}
    return {**row, "device_id": device_id, "received_ms": item.received_ms}


def _write_boots(connection: Connection, boots: Mapping[tuple[int, str], Boot], now: int) -> None:
    rows = [
        {
            "device_id": device_id,
            "boot": name,
            "stored": _text(boot.stored),
            "now": now,
            "born": boot.born,
        }
        for (device_id, name), boot in boots.items()
        if boot.changed
    ]
    if rows:
        connection.execute(_PUT_BOOT, rows)


def _to_acknowledge(
    ids: Mapping[Device, int], boots: Mapping[tuple[int, str], Boot]
) -> dict[Device, dict[str, Ranges]]:
    devices = {key: device for device, key in ids.items()}
    result: dict[Device, dict[str, Ranges]] = {}
    for (device_id, name), boot in boots.items():
        if boot.came:
            meeting = seq_ranges.meeting(boot.stored, boot.came)
            result.setdefault(devices[device_id], {})[name] = meeting
    return result


def _write_rejects(connection: Connection, rejects: Sequence[Reject]) -> None:
    rows = [
        {
            "received_ms": reject.received_ms,
            "topic": ascii(reject.topic)[1:-1][:400],
            "reason": reject.reason,
            "error": ascii(reject.error)[1:-1][:400],
            "size_bytes": len(reject.payload),
            "payload": reject.payload[:MAX_REJECT_BYTES],
        }
        for reject in rejects
    ]
    connection.execute(insert(RejectTable), rows)
    connection.execute(_CAP_REJECTS, {"kept": MAX_REJECTS})


def _text(ranges: Ranges) -> str:
    return json.dumps(ranges, separators=(",", ":"))
