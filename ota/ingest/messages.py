"""A message of the broker as what the store takes, or as a reject that says why not.

The topic says whose it is; access rules hold a device to its own topics, so nothing that a payload
says of that is ever believed (payloads do not even name a device).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.batch_encoding import ENCODINGS
from edgekit.contracts.fields import show
from edgekit.contracts.telemetry import Alarm, Health
from edgekit.contracts.topics import UP, Device, Topic
from edgekit.errors import MessageError
from ota.ingest.batches import read_batch, read_sample
from ota.store.items import NewAlarm, NewBatch, NewHealth, NewItem, Reject


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message as it came.

    Attributes:
        topic: Of the message.
        payload: Of the message.
        encoding: Its user property ``content-encoding``.
        received_ms: When.
        mid: The number to acknowledge.
        qos: As delivered; 0 is not acknowledged.
        connection: Which connection it came by: numbers are those of one.
    """

    topic: str
    payload: bytes
    encoding: str
    received_ms: int
    mid: int
    qos: int
    connection: int


def read_message(arrived: Arrived) -> NewItem | Reject:
    """Return what a message says, checked; or why it is refused."""
    try:
        topic = Topic.parse(arrived.topic)
    except MessageError as error:
        return _reject(arrived, "topic", error.message)
    if topic.channel not in UP:
        return _reject(arrived, "topic", f"devices do not publish to {show(arrived.topic)}")
    if topic.type == "batch" and arrived.encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        why = f"content-encoding {show(arrived.encoding)} is not one of {known}"
        return _reject(arrived, "encoding", why)
    try:
        return _read(arrived, topic)
    except MessageError as error:
        return _reject(arrived, "message", error.message)


def _read(arrived: Arrived, topic: Topic) -> NewItem:
    """Return what a message says.

    Raises:
        MessageError: It is none of its topic's.
    """
    device, now, payload = topic.device, arrived.received_ms, arrived.payload
    if topic.channel == "m":
        return _read_samples(device, arrived, topic.type)
    if topic.channel == "status":
        return NewHealth(device=device, received_ms=now, health=Health.from_bytes(payload))
    alarm = Alarm.from_bytes(payload)
    if alarm.alarm != topic.type:
        raise MessageError(f"alarm {show(alarm.alarm)} came as {show(topic.type)}")
    return NewAlarm(device=device, received_ms=now, alarm=alarm)


def _read_samples(device: Device, arrived: Arrived, kind: str) -> NewBatch:
    if kind == "sample":
        return read_sample(device, arrived.received_ms, arrived.payload)
    return read_batch(device, arrived.received_ms, arrived.payload, arrived.encoding)


def _reject(arrived: Arrived, reason: str, error: str) -> Reject:
    return Reject(arrived.topic, arrived.received_ms, reason, error, arrived.payload)
