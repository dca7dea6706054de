"""What ingest gives the store: messages, read and checked, of devices that the topics name."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.telemetry import Alarm, Health
from edgekit.contracts.topics import Device, Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """Samples, still as the device packed them.

    Attributes:
        device: Of the topic.
        received_ms: When.
        boot: Whose numbers.
        clock: What the times are worth.
        seq: The samples' numbers.
        first_ms: The earliest sample's time.
        last_ms: The latest's.
        encoding: Of the payload.
        payload: A batch that :class:`~edgekit.contracts.telemetry.Batch` reads.
    """

    device: Device
    received_ms: int
    boot: str
    clock: str
    seq: Ranges
    first_ms: int
    last_ms: int
    encoding: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAlarm:
    """An alarm, raised or cleared.

    Attributes:
        device: Of the topic.
        received_ms: When.
        alarm: The message.
    """

    device: Device
    received_ms: int
    alarm: Alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHealth:
    """A birth or will.

    Attributes:
        device: Of the topic.
        received_ms: When.
        health: The message.
    """

    device: Device
    received_ms: int
    health: Health


@dataclass(frozen=True, slots=True)
class Reject:
    """A message that was refused: nothing of it is stored but what says why.

    Attributes:
        topic: As it came.
        received_ms: When.
        reason: One of :data:`REASONS`.
        error: The whole reason, one line.
        payload: As it came.
    """

    topic: str
    received_ms: int
    reason: str
    error: str
    payload: bytes


REASONS = ("topic", "encoding", "message", "ranges", "store", "fault")
"""Why messages are refused: the topic is none of ours; the payload cannot be decompressed; what is
in it is no such message; it would tear a boot's numbers into too many ranges; the database will not
have it; edgekit fails to read it, and the log has the traceback."""

NewItem = NewBatch | NewAlarm | NewHealth


def reject_of(item: NewItem, reason: str, error: str) -> Reject:
    """Return the reject of a message that was read, and that the store will not have.

    Args:
        item: The message; a single sample counts as the batch that it became.
        reason: One of :data:`REASONS`.
        error: One line.
    """
    if isinstance(item, NewBatch):
        topic, payload = Topic(item.device, "m", "batch"), item.payload
    elif isinstance(item, NewAlarm):
        topic, payload = Topic(item.device, "a", item.alarm.alarm), item.alarm.to_bytes()
    else:
        topic, payload = Topic(item.device, "status", "health"), item.health.to_bytes()
    return Reject(str(topic), item.received_ms, reason, error, payload)
