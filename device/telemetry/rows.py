"""What the ring's rows hold, and the messages they become.

A row's payload is canonical JSON of what the ring itself does not know: a sample's readings, or an
alarm without its number and time. It is deflated with the readings' names as dictionary, which
makes a row a fifth as large: what is written to flash, and for how long the ring lasts. Rows of a
release before are inflated with the dictionary that they name themselves (RFC 1950, DICTID).
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
_NAMES = (
    b'"mqtt_connects_total":0,"mqtt_day_bytes":0,"mqtt_failures_total.busy":0,'
    b'"mqtt_failures_total.config":0,"mqtt_failures_total.link":0,"mqtt_malformed_total":0,'
    b'"mqtt_refused_total":0,"notices_total.double":0,"notices_total.expired":0,'
    b'"notices_total.failed":0,"notices_total.refused":0,"notices_total.taken":0,'
    b'"notices_total.unknown":0,"remote_documents_total.applied":0,'
    b'"remote_documents_total.audience":0,"remote_documents_total.early":0,'
    b'"remote_documents_total.expired":0,"remote_documents_total.failed":0,'
    b'"remote_documents_total.malformed":0,"remote_documents_total.replayed":0,'
    b'"remote_documents_total.setting":0,"remote_documents_total.signature":0,'
    b'"remote_documents_total.slow":0,"remote_documents_total.tenant":0,'
    b'"remote_documents_total.too_large":0,"remote_documents_total.unchanged":0,'
    b'"remote_documents_total.unreachable":0,"remote_documents_total.unsupported":0,'
    b'"ring_dropped_total.age":0,"ring_dropped_total.broken":0,"ring_dropped_total.full":0,'
    b'"ring_dropped_total.unsendable":0,"ring_file_bytes":0,"ring_rows":0,'
    b'"sensor_errors_total.board":0,"sensor_errors_total.engine":0,'
    b'"sensor_errors_total.links":0,"sensor_errors_total.modem":0,'
    b'"sensor_errors_total.mqtt":0,"sensor_errors_total.probe":0,"sensor_errors_total.proc":0,'
    b'"sensor_errors_total.remote":0,"sensor_errors_total.ring":0,'
    b'"sensor_errors_total.server":0,"sensor_errors_total.storage":0,'
    b'"sensor_errors_total.sysfs":0,"sensor_errors_total.tegrastats":0,'
)
"""Counters as they stand in most rows, all of them 0; frozen, as rows of it are in rings."""
_WRITTEN = _NAMES + DICTIONARY
_READ = {zlib.adler32(one): one for one in (_WRITTEN, DICTIONARY)}
"""By what a deflated row says of its dictionary; one that was ever written with stays here."""
_DICTID = slice(2, 6)
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
    packer = zlib.compressobj(_LEVEL, zdict=_WRITTEN)
    return packer.compress(data) + packer.flush()


def _parse(row: Row) -> dict[str, object]:
    try:
        reader = zlib.decompressobj(
            zdict=_READ.get(int.from_bytes(row.payload[_DICTID], "big"), DICTIONARY)
        )
        data = reader.decompress(row.payload, _MAX_BYTES)
        if not reader.eof:
            raise MessageError(f"{_WHERE} is cut or too large")
        return parse_document(data, _WHERE)
    except (zlib.error, BundleError) as error:
        raise MessageError(f"{_WHERE} cannot be read: {first_line(error)}") from error
