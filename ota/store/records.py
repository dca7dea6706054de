"""What readers of the store get: plain records, without a connection behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.batch_encoding import decompress
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.series import Number
from edgekit.contracts.telemetry import Batch


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """Samples as they are stored; no sample is in two of them.

    Attributes:
        cursor: Rises in the order of commits: what :func:`ota.store.read.batches_after` goes on
            after.
        tenant: Of the topic.
        device: Of the topic.
        boot: Whose numbers.
        clock: What the times are worth.
        seq: The samples' numbers.
        first_ms: The earliest sample's time.
        last_ms: The latest's.
        received_ms: When the cloud had it.
        encoding: Of the payload.
        payload: The batch, compressed.
    """

    cursor: int
    tenant: str
    device: str
    boot: str
    clock: str
    seq: Ranges
    first_ms: int
    last_ms: int
    received_ms: int
    encoding: str
    payload: bytes

    def batch(self) -> Batch:
        """Return the samples, decoded.

        Raises:
            MessageError: The row is damaged: nothing is stored that cannot be read.
        """
        return Batch.from_bytes(decompress(self.payload, self.encoding))


@dataclass(frozen=True, slots=True)
class StoredDevice:
    """What the store knows of a device.

    Attributes:
        tenant: Of the topic.
        device: Of the topic.
        first_seen_ms: When its first message was received.
        last_seen_ms: When its last one was; a will does not count.
        state: ``up`` or ``down``; None until a birth or will has come.
        state_ms: When that was received.
        down_reason: Why it is down: ``stopped`` if it said goodbye, ``lost`` if it did not, None
            if nothing says, or it is up.
        boot: Of the last birth or will.
        connection: Of the last birth or will.
        details: Of the last birth.
        encodings: What the last birth says that it writes.
    """

    tenant: str
    device: str
    first_seen_ms: int
    last_seen_ms: int
    state: str | None
    state_ms: int | None
    down_reason: str | None
    boot: str | None
    connection: int | None
    details: Mapping[str, str | Number | None]
    encodings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredAlarm:
    """An alarm that was raised or cleared.

    Attributes:
        tenant: Of the topic.
        device: Of the topic.
        alarm: Its name.
        reading: What it is about, with its label.
        state: ``raised`` or ``cleared``.
        severity: As the device says.
        value: The reading at that time.
        threshold: What it passed.
        boot: Whose number.
        seq: Its number.
        time_ms: When it was decided, by the device's clock.
        clock: What that is worth.
        received_ms: When the cloud had it.
    """

    tenant: str
    device: str
    alarm: str
    reading: str
    state: str
    severity: str
    value: float
    threshold: float
    boot: str
    seq: int
    time_ms: int
    clock: str
    received_ms: int
