"""Samples of the ring as batches: columns, compressed.

| encoding | payload |
|---|---|
| ``json`` | the batch's JSON |
| ``zstd`` | that, as one zstd frame |
| ``zstd-ek1`` | that, with the readings' names as a raw dictionary, see :data:`DICTIONARY` |

The device names the encoding in the message's user property ``content-encoding`` and lists those
that it writes in its birth. All readings' names are in every batch, which is why a dictionary of
them saves as much as it does (``docs/telemetry.md`` has figures).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from device.telemetry.ring import Row
from device.telemetry.rows import sample_of
from edgekit.contracts.batch_dictionary import DICTIONARY
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.telemetry import Batch
from edgekit.errors import MessageError, MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

ENCODINGS = ("zstd-ek1", "zstd", "json")
"""From the smallest to the plainest."""
LEVEL = 12
"""Of zstd: on 60 samples it takes 0.7 ms, and higher ones save nothing more."""


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


def compress(data: bytes, encoding: str) -> bytes:
    """Return a payload in an encoding.

    Raises:
        MissingExtraError: Its compressor is not installed.
    """
    if encoding == "json":
        return data
    zstd = _zstd()
    words = zstd.ZstdDict(DICTIONARY, is_raw=True) if encoding == "zstd-ek1" else None
    result: bytes = zstd.compress(data, level=LEVEL, zstd_dict=words)
    return result


def decompress(payload: bytes, encoding: str, limit_bytes: int = Batch.MAX_BYTES) -> bytes:
    """Return the JSON of a payload; what would be larger than the limit is not made.

    Raises:
        MessageError: The payload is no such frame, is cut, or is too large.
        MissingExtraError: Its compressor is not installed.
    """
    if encoding not in ENCODINGS:
        raise MessageError(f"content-encoding {encoding!a} is not one of {', '.join(ENCODINGS)}")
    if encoding == "json":
        return payload
    zstd = _zstd()
    words = zstd.ZstdDict(DICTIONARY, is_raw=True) if encoding == "zstd-ek1" else None
    reader: Any = zstd.ZstdDecompressor(zstd_dict=words)
    try:
        data: bytes = reader.decompress(payload, max_length=limit_bytes)
    except zstd.ZstdError as error:
        raise MessageError(f"a batch is no zstd frame: {error}") from error
    if not reader.eof or reader.unused_data:
        raise MessageError(f"a batch is cut, or larger than {limit_bytes} bytes")
    return data


def _zstd() -> ModuleType:
    """Return the compressor: of the standard library from Python 3.14 on."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415
        else:
            from backports import zstd  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("compressing telemetry", "telemetry", "or use json") from error
    return zstd
