"""Checking a batch without making Python numbers of it all: what the store keeps is the payload.

A canonical batch is checked by msgspec: its types, then what the contract demands of the numbers.
That it is canonical is known by writing it again, which must give the same bytes; so no key is
double and nothing is in it that the check did not see. What has the right types and fails here
goes to the contract's own reader (``edgekit.contracts.telemetry.Batch``), ten times slower, which
has the last word and says what is wrong. The fast way therefore only ever takes what the slow one
does (``tests/unit/ota/test_ingest_messages.py``).

The slow way takes 0.2 s a megabyte, which a frame of 400 bytes can claim: what is large must be
canonical, as the contract demands and devices write.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import Annotated

import msgspec

from edgekit.batch_encoding import compress, decompress
from edgekit.contracts import seq_ranges
from edgekit.contracts.columns import MAX_CELLS, MAX_ROWS
from edgekit.contracts.message import CLOCKS, READABLE_VERSIONS
from edgekit.contracts.seq_ranges import MAX_SEQ, Ranges
from edgekit.contracts.series import MAX_SERIES, NAME
from edgekit.contracts.telemetry import Batch, Sample
from edgekit.contracts.topics import SEGMENT, Device
from edgekit.errors import MessageError, first_line
from ota.store.items import NewBatch

_MAX_INTEGER = 2**53
_MIN_EXPONENT = -9
_Integer = Annotated[int, msgspec.Meta(ge=-_MAX_INTEGER, le=_MAX_INTEGER)]
MAX_PLAIN_BYTES = 512 * 1024
"""Largest batch that need not be canonical."""
_STORED = "zstd-ek1"
"""What the store compresses by itself: batches in plain JSON and single samples."""
_LEVEL = 3


class _Wire(msgspec.Struct):
    """A batch as it is written."""

    boot: str
    clock: str
    schema_version: int
    seq: list[list[_Integer]]
    times_ms: list[_Integer]
    constants: dict[str, _Integer | float | None] | msgspec.UnsetType = msgspec.UNSET
    deltas: dict[str, list[_Integer | None]] | msgspec.UnsetType = msgspec.UNSET
    lists: dict[str, list[_Integer | float | None]] | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_Wire)
_ENCODER = msgspec.json.Encoder(order="sorted")


def read_batch(device: Device, received_ms: int, payload: bytes, encoding: str) -> NewBatch:
    """Check a batch, and return it as it is to be stored.

    Raises:
        MessageError: It is none, or larger than batches may be.
    """
    data = decompress(payload, encoding)
    if len(data) > Batch.MAX_BYTES:
        raise MessageError(f"a batch has {len(data)} bytes, at most {Batch.MAX_BYTES} are read")
    boot, clock, seq, times = _checked(data) or _read_slowly(data)
    if encoding == "json":
        encoding, payload = _STORED, compress(data, _STORED, _LEVEL)
    return NewBatch(
        device=device,
        received_ms=received_ms,
        boot=boot,
        clock=clock,
        seq=seq,
        first_ms=min(times),
        last_ms=max(times),
        encoding=encoding,
        payload=payload,
    )


def read_sample(device: Device, received_ms: int, payload: bytes) -> NewBatch:
    """Check a single sample, and return it as the batch of one that is stored.

    Raises:
        MessageError: It is none.
    """
    batch = Batch.of_samples([Sample.from_bytes(payload)])
    return read_batch(device, received_ms, batch.to_bytes(), "json")


_Facts = tuple[str, str, Ranges, tuple[int, ...]]
"""Boot, clock, numbers, times."""


def _read_slowly(data: bytes) -> _Facts:
    """Read a batch the contract's way.

    Raises:
        MessageError: It is none, or large and not canonical.
    """
    if len(data) > MAX_PLAIN_BYTES:
        raise MessageError(
            f"a batch has {len(data)} bytes and is not canonical, or not as the contract says"
        )
    batch = Batch.from_bytes(data)
    return batch.boot, batch.clock, batch.seq, batch.times_ms


def _checked(data: bytes) -> _Facts | None:
    """Return the facts of a batch that is right beyond doubt; None where that is not known.

    Raises:
        MessageError: A type is wrong beyond doubt.
    """
    try:
        wire = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a batch is not as it should be: {first_line(error)}") from error
    times = tuple(accumulate(wire.times_ms))
    rows = len(times)
    if not (
        wire.schema_version in READABLE_VERSIONS
        and SEGMENT.fullmatch(wire.boot)
        and wire.clock in CLOCKS
        and 0 < rows <= MAX_ROWS
        and min(times) >= 0
        and max(times) < _MAX_INTEGER
        and _are_columns(wire, rows)
        and _ENCODER.encode(wire) == data
    ):
        return None
    seq = _ranges(wire.seq)
    if seq is None or seq_ranges.count(seq) != rows:
        return None
    return wire.boot, wire.clock, seq, times


def _ranges(pairs: list[list[int]]) -> Ranges | None:
    try:
        return seq_ranges.from_json(pairs, "seq")
    except MessageError:
        return None


def _are_columns(wire: _Wire, rows: int) -> bool:
    """Whether all columns are right: names, lengths, and that the sums of differences are exact."""
    constants, deltas, lists = wire.constants or {}, wire.deltas or {}, wire.lists or {}
    columns = len(constants) + len(deltas) + len(lists)
    if columns > min(MAX_SERIES, MAX_CELLS // rows):
        return False
    names = constants.keys() | deltas.keys() | lists.keys()
    return (
        len(names) == columns
        and all(map(_is_name, names))
        and all(len(column) == rows for column in lists.values())
        and all(_are_deltas(column, rows) for column in deltas.values())
    )


def _are_deltas(column: list[int | None], rows: int) -> bool:
    if len(column) != rows + 1:
        return False
    exponent = column[0]
    if exponent is None or not _MIN_EXPONENT <= exponent <= 0:
        return False
    # No sum can be larger than that of all sizes.
    return sum(map(abs, filter(None, column))) < MAX_SEQ


@lru_cache(maxsize=20_000)
def _is_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None
