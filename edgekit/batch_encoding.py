"""Encodings of batches: what a device compresses and the store reads.

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
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekit.contracts.batch_dictionary import DICTIONARY
from edgekit.contracts.telemetry import Batch
from edgekit.errors import MessageError, MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

PROPERTY = "content-encoding"
"""The user property that names the encoding; a message without it is ``json``."""
ENCODINGS = ("zstd-ek1", "zstd", "json")
"""From the smallest to the plainest."""
LEVEL = 12
"""Of zstd: on 60 samples it takes 0.7 ms, and higher ones save nothing more."""
_MAX_WINDOW_LOG = 23
"""Of frames that are read: a window of 8 MiB. The largest batch is half of that, and a frame's
header of a few bytes could claim 128 MiB."""


def compress(data: bytes, encoding: str, level: int = LEVEL) -> bytes:
    """Return a payload in an encoding.

    Raises:
        MissingExtraError: Its compressor is not installed.
    """
    if encoding == "json":
        return data
    result: bytes = _zstd().compress(data, level=level, zstd_dict=_words(encoding))
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
    window = {zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}
    reader: Any = zstd.ZstdDecompressor(zstd_dict=_words(encoding), options=window)
    try:
        data: bytes = reader.decompress(payload, max_length=limit_bytes)
    except zstd.ZstdError as error:
        raise MessageError(f"a batch is no zstd frame: {error}") from error
    if not reader.eof or reader.unused_data:
        raise MessageError(f"a batch is cut, or larger than {limit_bytes} bytes")
    return data


@cache
def _words(encoding: str) -> Any:
    """Return an encoding's dictionary, digested once; None for one without."""
    return _zstd().ZstdDict(DICTIONARY, is_raw=True) if encoding == "zstd-ek1" else None


@cache
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
