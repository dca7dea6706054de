"""Prometheus' ``WriteRequest`` as protobuf's own reader reads it."""

from __future__ import annotations

from typing import Any

import cramjam
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

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


def read_request(body: bytes) -> list[tuple[dict[str, str], list[tuple[int, float]]]]:
    """Return labels and points of every series of a request's body."""
    request = WriteRequest.FromString(bytes(cramjam.snappy.decompress_raw(body)))
    return [
        (
            {label.name: label.value for label in one.labels},
            [(sample.timestamp, sample.value) for sample in one.samples],
        )
        for one in request.timeseries
    ]
