"""What the ring's rows hold, and the messages they become.

A row's payload is canonical JSON of what the ring itself does not know: a sample's readings, or an
alarm without its number and time.
"""

from __future__ import annotations

from dataclasses import asdict

from device.telemetry.alarms import Decision
from device.telemetry.ring import Row
from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.message import SCHEMA_VERSION
from edgekit.contracts.series import Values, check_values
from edgekit.contracts.telemetry import Alarm, Sample
from edgekit.errors import BundleError, MessageError

_WHERE = "a row of the ring"


def sample_payload(values: Values) -> bytes:
    """Return the row of a sample's readings."""
    return canonical_bytes(dict(values))


def alarm_payload(decision: Decision) -> bytes:
    """Return the row of an alarm."""
    return canonical_bytes(asdict(decision))


def sample_of(row: Row) -> Sample:
    """Return a row's sample.

    Raises:
        MessageError: It holds none.
    """
    values = check_values(_parse(row), _WHERE)
    return Sample(boot=row.boot, seq=row.seq, time_ms=row.time_ms, clock=row.clock, values=values)


def alarm_of(row: Row) -> Alarm:
    """Return a row's alarm.

    Raises:
        MessageError: It holds none.
    """
    moment = {"boot": row.boot, "seq": row.seq, "time_ms": row.time_ms, "clock": row.clock}
    return Alarm.from_dict({**_parse(row), **moment, "schema_version": SCHEMA_VERSION})


def _parse(row: Row) -> dict[str, object]:
    try:
        return parse_document(row.payload, _WHERE)
    except BundleError as error:
        raise MessageError(error.message) from error
