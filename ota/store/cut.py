"""Batches that are partly stored already: what is new of them, as a batch of its own."""

from __future__ import annotations

from dataclasses import replace

from edgekit.batch_encoding import ENCODINGS, compress, decompress
from edgekit.contracts import seq_ranges
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.telemetry import Batch
from ota.store.items import NewBatch


def cut_batch(item: NewBatch, wanted: Ranges) -> NewBatch:
    """Return a batch of some of another's samples.

    Args:
        item: The other.
        wanted: Numbers of it, at least one.
    """
    batch = Batch.from_bytes(decompress(item.payload, item.encoding))
    numbers = (number for first, last in batch.seq for number in range(first, last + 1))
    rows = [row for row, number in enumerate(numbers) if seq_ranges.contains(wanted, number)]
    times = tuple(batch.times_ms[row] for row in rows)
    kept = replace(
        batch,
        seq=wanted,
        times_ms=times,
        columns={
            name: tuple(column[row] for row in rows) for name, column in batch.columns.items()
        },
    )
    encoding = ENCODINGS[0]
    return replace(
        item,
        seq=wanted,
        first_ms=min(times),
        last_ms=max(times),
        encoding=encoding,
        payload=compress(kept.to_bytes(), encoding),
    )
