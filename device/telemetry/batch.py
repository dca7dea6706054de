"""Samples of the ring as batches: columns, compressed (``edgekit.batch_encoding``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device.telemetry.ring import Row
from device.telemetry.rows import sample_of
from edgekit.batch_encoding import ENCODINGS, compress
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.telemetry import Batch


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as it is published.

    Attributes:
        boot: Whose numbers.
        seq: The samples that are in it.
        encoding: One of ``ENCODINGS``.
        payload: The message.
    """

    boot: str
    seq: Ranges
    encoding: str
    payload: bytes


def pack(rows: Sequence[Row], encoding: str = ENCODINGS[0]) -> Packed:
    """Make a batch of rows of one boot and kind of clock, in ascending order.

    Raises:
        MessageError: A row's payload is no sample's.
        MissingExtraError: The encoding's compressor is not installed.
    """
    batch = Batch.of_samples([sample_of(row) for row in rows])
    return Packed(batch.boot, batch.seq, encoding, compress(batch.to_bytes(), encoding))
