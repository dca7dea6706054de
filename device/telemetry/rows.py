"""What the ring's rows hold, and the messages they become.

A row's payload is canonical JSON of what the ring itself does not know: a sample's readings, or an
alarm without its number and time. It is deflated with the readings' names as dictionary, which
makes a row a fifth as large: what is written to flash, and for how long the ring lasts.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict

from device.telemetry.alarms import Decision
from device.telemetry.ring import Row
from edgekit.contracts.batch_dictionary import DICTIONARY
from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.message import SCHEMA_VERSION
from edgekit.contracts.series import Values, check_values
from edgekit.contracts.telemetry import Alarm, Sample
from edgekit.errors import BundleError, MessageError, first_line

_WHERE = "a row of the ring"
_LEVEL = 6
_MAX_BYTES = 256 * 1024


def sample_payload(values: Values) -> bytes:
    """Return the row of a sample's readings."""
    return _deflate(canonical_bytes(dict(values)))


def alarm_payload(decision: Decision) -> bytes:
    """Return the row of an alarm."""
    return _deflate(canonical_bytes(asdict(decision)))


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


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, zdict=DICTIONARY)
    return packer.compress(data) + packer.flush()


def _parse(row: Row) -> dict[str, object]:
    reader = zlib.decompressobj(zdict=DICTIONARY)
    try:
        data = reader.decompress(row.payload, _MAX_BYTES)
        if not reader.eof:
            raise MessageError(f"{_WHERE} is cut or too large")
        return parse_document(data, _WHERE)
    except (zlib.error, BundleError) as error:
        raise MessageError(f"{_WHERE} cannot be read: {first_line(error)}") from error
