"""The body of remote write 1.0: Prometheus' ``WriteRequest`` in protobuf, as a block of snappy.

    message WriteRequest { repeated TimeSeries timeseries = 1; }
    message TimeSeries   { repeated Label labels = 1; repeated Sample samples = 2; }
    message Label        { string name = 1; string value = 2; }
    message Sample       { double value = 1; int64 timestamp = 2; }   // milliseconds since 1970

Four messages, so they are written here instead of by a generator and its run time; a test has
protobuf's own reader read them. Source: prometheus.io/docs/specs/prw/remote_write_spec, which also
asks for labels in the order of their names and samples in that of their times.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import cramjam

HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
Point = tuple[int, float]
"""Milliseconds since 1970, and the value."""
_SERIES_FIELD = b"\x0a"
_LABEL_FIELD = b"\x0a"
_SAMPLE_FIELD = b"\x12"
_DOUBLE_FIELD = b"\x09"
_TIME_FIELD = b"\x10"
_double = struct.Struct("<d").pack
_INT64 = (1 << 64) - 1


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it; negative ones as 64 bits of two's complement."""
    number &= _INT64
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _delimited(field: bytes, data: bytes) -> bytes:
    return field + varint(len(data)) + data


def encode_labels(labels: Mapping[str, str]) -> bytes:
    """Return labels, the metric's ``__name__`` among them, in the order of their names.

    Args:
        labels: Name to value. Empty values are left out: to Prometheus they are no label.
    """
    return b"".join(
        _delimited(
            _LABEL_FIELD,
            _delimited(b"\x0a", name.encode()) + _delimited(b"\x12", labels[name].encode()),
        )
        for name in sorted(labels)
        if labels[name]
    )


class Encoder:
    """Writes series; the fields of a time are written once, for most series share their times."""

    def __init__(self) -> None:
        self._fields: dict[int, tuple[bytes, bytes]] = {}

    def series(self, labels: bytes, points: Iterable[Point]) -> bytes:
        """Return one series as a field of the request.

        Args:
            labels: Of :func:`encode_labels`.
            points: In ascending order of their times.
        """
        fields, double = self._fields, _double
        parts = [labels]
        for time_ms, value in points:
            found = fields.get(time_ms)
            if found is None:
                found = fields[time_ms] = _time_fields(time_ms)
            parts.append(found[0] + double(value) + found[1])
        return _delimited(_SERIES_FIELD, b"".join(parts))


def _time_fields(time_ms: int) -> tuple[bytes, bytes]:
    """Return what comes before and after a sample's value."""
    after = _TIME_FIELD + varint(time_ms)
    return _SAMPLE_FIELD + varint(9 + len(after)) + _DOUBLE_FIELD, after


def request_body(series: Sequence[bytes]) -> bytes:
    """Return the body of a request, compressed.

    Args:
        series: Of :meth:`Encoder.series`.
    """
    return bytes(cramjam.snappy.compress_raw(b"".join(series)))
