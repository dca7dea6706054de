"""The body of a remote write, read by protobuf's own reader."""

from __future__ import annotations

from typing import Any

import cramjam
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from ota.metrics.wire import Encoder, encode_labels, request_body

_FIELDS = {
    "WriteRequest": [("timeseries", 1, "TimeSeries")],
    "TimeSeries": [("labels", 1, "Label"), ("samples", 2, "Sample")],
    "Label": [("name", 1, "string"), ("value", 2, "string")],
    "Sample": [("value", 1, "double"), ("timestamp", 2, "int64")],
}
_TYPES = {"string": 9, "double": 1, "int64": 3}


def _write_request() -> Any:
    """Return the class of Prometheus' message, from prompb/remote.proto and types.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="w.proto", package="prometheus", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            one = message.field.add(name=field, number=number, label=1)
            if kind in _TYPES:
                one.type = _TYPES[kind]
            else:
                one.type, one.type_name, one.label = 11, f".prometheus.{kind}", 3
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("prometheus.WriteRequest"))


WriteRequest = _write_request()
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
points = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)), max_size=40
)


def read(body: bytes) -> list[tuple[dict[str, str], list[tuple[int, float]]]]:
    request = WriteRequest.FromString(bytes(cramjam.snappy.decompress_raw(body)))
    return [
        (
            {label.name: label.value for label in one.labels},
            [(sample.timestamp, sample.value) for sample in one.samples],
        )
        for one in request.timeseries
    ]


@given(st.lists(st.tuples(st.dictionaries(texts, texts, max_size=6), points), max_size=5))
def test_protobuf_reads_what_was_written(
    series: list[tuple[dict[str, str], list[tuple[int, float]]]],
) -> None:
    """Any labels, times and values come back from another reader as they were."""
    encoder = Encoder()
    body = request_body([encoder.series(encode_labels(labels), at) for labels, at in series])
    assert read(body) == series


def test_labels_are_in_order() -> None:
    """Receivers may refuse labels that are not sorted, and empty ones."""
    labels = {"tenant": "acme", "device": "orin-1", "zone": "", "__name__": "edgekit_device_x"}
    data = encode_labels(labels)
    order = [data.index(name) for name in (b"__name__", b"device", b"tenant")]
    assert order == sorted(order)
    assert b"zone" not in data


@pytest.mark.parametrize("count", [1, 60])
def test_a_point_takes_sixteen_bytes(count: int) -> None:
    """A double, a time of these years, and their tags: 18 bytes with the sample's own."""
    encoder = Encoder()
    empty = len(encoder.series(b"", []))
    at = [(1_784_970_508_000 + 10_000 * n, 0.5) for n in range(count)]
    assert len(encoder.series(b"", at)) - empty - (count > 6) == 18 * count
