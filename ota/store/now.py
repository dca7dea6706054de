"""What holds now of devices, in the tables: presence and the alarms that are raised.

The rules are :mod:`ota.store.presence`'s. The devices' rows are locked by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, or_, select, text

from edgekit.contracts.topics import Device
from ota.store.items import NewAlarm, NewHealth
from ota.store.presence import AlarmState, Presence, after_health, is_active
from ota.store.tables import AlarmStateTable, DeviceTable

AlarmKey = tuple[int, str, str, str]
"""Device's id, boot, alarm, reading."""

_PUT_STATE = text(
    "INSERT INTO alarm_states (device_id, boot, alarm, reading, seq, time_ms, raised, active)"
    " VALUES (:device_id, :boot, :alarm, :reading, :seq, :time_ms, :raised, :active)"
    " ON CONFLICT (device_id, boot, alarm, reading) DO UPDATE SET seq = excluded.seq,"
    " time_ms = excluded.time_ms, raised = excluded.raised, active = excluded.active"
)
_PUT_PRESENCE = text(
    "UPDATE devices SET state = :state, state_received_ms = :state_received_ms,"
    " down_reason = :down_reason, boot = :boot, connection = :connection,"
    " birth_ms = :birth_ms, birth_alarms = :birth_alarms, details = :details WHERE id = :key"
)


def write_alarms_and_health(
    connection: Connection,
    ids: Mapping[Device, int],
    alarms: Sequence[NewAlarm],
    health: Sequence[NewHealth],
    born: Mapping[tuple[int, str], bool],
) -> set[tuple[int, str]]:
    """Bring presence and raised alarms up to date.

    Args:
        connection: In a transaction.
        ids: Of the devices.
        alarms: New ones.
        health: Births and wills, in the order in which they came.
        born: Device's id and boot to ``boots.born``.

    Returns:
        The boots of births and wills that were not stale.
    """
    touched = {ids[item.device] for item in alarms} | {ids[item.device] for item in health}
    before = _presences(connection, touched)
    presences = dict(before)
    taken: set[tuple[int, str]] = set()
    for item in health:
        key = (ids[item.device], item.health.boot)
        after = after_health(
            presences[key[0]], item.health, item.received_ms, born=born[key] or key in taken
        )
        if after is not None:
            presences[key[0]] = after
            taken.add(key)
    _write_presences(connection, {k: p for k, p in presences.items() if p != before[k]})
    _write_states(connection, presences, [(ids[a.device], a) for a in alarms])
    return taken


def _presences(connection: Connection, devices: Iterable[int]) -> dict[int, Presence]:
    table = DeviceTable
    query = select(
        table.id,
        table.state,
        table.state_received_ms,
        table.down_reason,
        table.boot,
        table.connection,
        table.birth_ms,
        table.birth_alarms,
        table.details,
    ).where(table.id.in_(devices))
    return {row.id: _presence(row) for row in connection.execute(query)}


def _presence(row: Any) -> Presence:
    return Presence(
        state=row.state,
        state_received_ms=row.state_received_ms,
        down_reason=row.down_reason,
        boot=row.boot,
        connection=row.connection,
        birth_ms=row.birth_ms,
        birth_alarms=tuple(json.loads(row.birth_alarms or "[]")),
        details=None if row.details is None else json.loads(row.details),
    )


def _write_presences(connection: Connection, presences: Mapping[int, Presence]) -> None:
    if not presences:
        return
    rows = [
        {
            "key": key,
            "state": presence.state,
            "state_received_ms": presence.state_received_ms,
            "down_reason": presence.down_reason,
            "boot": presence.boot,
            "connection": presence.connection,
            "birth_ms": presence.birth_ms,
            "birth_alarms": json.dumps(presence.birth_alarms),
            "details": None if presence.details is None else json.dumps(dict(presence.details)),
        }
        for key, presence in presences.items()
    ]
    connection.execute(_PUT_PRESENCE, rows)


def _write_states(
    connection: Connection,
    presences: Mapping[int, Presence],
    alarms: Sequence[tuple[int, NewAlarm]],
) -> None:
    """Take new alarms, and decide for all of the devices' alarms whether they are raised now."""
    boots = {presence.boot for presence in presences.values() if presence.boot is not None}
    before = _states(connection, presences, boots | {item.alarm.boot for _, item in alarms})
    states = dict(before)
    for device_id, item in alarms:
        alarm = item.alarm
        key = (device_id, alarm.boot, alarm.alarm, alarm.reading)
        if key not in states or states[key].seq < alarm.seq:
            states[key] = AlarmState(alarm.seq, alarm.time_ms, alarm.state == "raised", False)
    rows = []
    for key, state in states.items():
        device_id, boot, alarm_name, reading = key
        active = is_active(presences[device_id], boot, f"{alarm_name}:{reading}", state)
        decided = replace(state, active=active)
        if decided != before.get(key):
            rows.append(_row(key, decided))
    if rows:
        connection.execute(_PUT_STATE, rows)


def _states(
    connection: Connection, devices: Iterable[int], boots: Iterable[str]
) -> dict[AlarmKey, AlarmState]:
    """Return what the boots' alarms are, and whatever is raised now."""
    table = AlarmStateTable
    query = select(
        table.device_id,
        table.boot,
        table.alarm,
        table.reading,
        table.seq,
        table.time_ms,
        table.raised,
        table.active,
    ).where(table.device_id.in_(devices), or_(table.active, table.boot.in_(boots)))
    return {
        (row.device_id, row.boot, row.alarm, row.reading): AlarmState(
            row.seq, row.time_ms, row.raised, row.active
        )
        for row in connection.execute(query)
    }


def _row(key: AlarmKey, state: AlarmState) -> dict[str, object]:
    device_id, boot, alarm, reading = key
    return {
        "device_id": device_id,
        "boot": boot,
        "alarm": alarm,
        "reading": reading,
        "seq": state.seq,
        "time_ms": state.time_ms,
        "raised": state.raised,
        "active": state.active,
    }
