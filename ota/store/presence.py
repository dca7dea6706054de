"""Births, wills and alarms: what holds now, whatever order messages come in.

Two workers share a device's messages and a killed worker's come again later, so nothing here goes
by the order of arrival. Of one boot, the higher connection is the newer, and its will is newer than
its birth. A goodbye is the device's own word: it counts before the will of its connection, which
the broker may publish all the same. A boot that was born before the present one's birth came is
over: what it still sends is history. Alarms count if they are the newest of their boot by number
and the last birth has not ended them; without a birth, all that are raised count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgekit.contracts.series import Number
from edgekit.contracts.telemetry import STOPPED, Health
from edgekit.contracts.topics import SEGMENT


@dataclass(frozen=True, slots=True)
class Presence:
    """What a device's last birth and will say; all None before the first.

    Attributes:
        state: ``up`` or ``down``.
        state_received_ms: When that came.
        down_reason: Why it is down; None while it is up, or if nothing says.
        boot: Which boot it is in.
        connection: Of that boot.
        birth_ms: When the last birth was written, by the device's clock.
        birth_alarms: What it says is raised, as ``alarm:reading``.
        details: Its details.
    """

    state: str | None = None
    state_received_ms: int | None = None
    down_reason: str | None = None
    boot: str | None = None
    connection: int | None = None
    birth_ms: int | None = None
    birth_alarms: tuple[str, ...] = ()
    details: Mapping[str, str | Number | None] | None = None


@dataclass(frozen=True, slots=True)
class AlarmState:
    """The newest that is known of one alarm and reading in one boot.

    Attributes:
        seq: Its number.
        time_ms: When it was decided.
        raised: Whether it was raised or cleared.
        active: Whether it is shown as raised now.
    """

    seq: int
    time_ms: int
    raised: bool
    active: bool


def after_health(
    presence: Presence, health: Health, received_ms: int, *, born: bool
) -> Presence | None:
    """Return a device's presence after a birth or will; None if that is stale.

    Args:
        presence: Before it.
        health: The message.
        received_ms: When it came.
        born: Whether a birth or will of the message's boot was taken before.
    """
    if health.boot == presence.boot:
        connection = presence.connection or 0
        same = health.connection == connection
        known = same and presence.state == health.state and not _is_newly_stopped(presence, health)
        if health.connection < connection or known:
            return None
        state = "down" if same else health.state
    else:
        older = presence.birth_ms is not None and health.time_ms < presence.birth_ms
        # The clock decides only where both are set; one that is not begins at its last guess.
        if presence.boot is not None and (born or (older and health.clock == "synced")):
            return None
        presence, state = Presence(details=presence.details), health.state
    if presence.state != state:
        presence = replace(presence, state=state, state_received_ms=received_ms)
    presence = replace(presence, boot=health.boot, connection=health.connection)
    if health.state == "down":
        return replace(presence, down_reason=_reason(health))
    return replace(
        presence,
        down_reason=presence.down_reason if state == "down" else None,
        birth_ms=health.time_ms,
        birth_alarms=health.alarms,
        details=health.details,
    )


def _reason(health: Health) -> str | None:
    """Return why a device is down; None where that is not one plain word."""
    reason = health.details.get("reason")
    is_word = isinstance(reason, str) and SEGMENT.fullmatch(reason) is not None
    return str(reason) if is_word else None


def _is_newly_stopped(presence: Presence, health: Health) -> bool:
    """Whether this is the goodbye of a connection whose will came before it."""
    said_goodbye = health.state == "down" and _reason(health) == STOPPED
    return said_goodbye and presence.down_reason != STOPPED


def is_active(presence: Presence, boot: str, name: str, alarm: AlarmState) -> bool:
    """Whether an alarm is raised now.

    Args:
        presence: Of its device.
        boot: Of the alarm.
        name: ``alarm:reading``.
        alarm: The newest of this boot.
    """
    if presence.boot is None:
        return alarm.raised
    if boot != presence.boot or not alarm.raised:
        return False
    born_before = presence.birth_ms is None or alarm.time_ms > presence.birth_ms
    return born_before or name in presence.birth_alarms
