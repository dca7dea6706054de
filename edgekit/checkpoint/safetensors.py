"""The safetensors format, read without trusting it.

A file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes
(github.com/huggingface/safetensors, "Format"). Every claim of the header is checked before a byte
of data is mapped.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.files import read_errors
from edgekit.errors import CheckpointError

PREFIX_BYTES = 8
"""Of the header's length, before it."""
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 200_000
MAX_RANK = 8

DTYPES: dict[str, npt.DTypeLike] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # NumPy has no bfloat16: the raw bits
    "F8_E4M3": np.uint8,  # nor float8
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Stored type to the NumPy type its bytes are mapped as."""

_TRUNCATED = "The file is truncated or damaged: download it again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor's bytes are.

    Attributes:
        name: Key in the checkpoint.
        dtype: Stored type, as the header spells it.
        shape: Its shape.
        path: The shard.
        offset: First byte in the shard.
        size_bytes: Number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size_bytes: int

    def mapped(self) -> npt.NDArray[Any]:
        """Map the tensor read-only, as the NumPy type of :data:`DTYPES`."""
        return np.memmap(
            self.path, dtype=DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape
        )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read and check the header of one safetensors file.

    Raises:
        CheckpointError: Not a safetensors file, truncated, or its header lies about sizes.
    """
    with read_errors(path), path.open("rb") as file:
        size = path.stat().st_size
        header = file.read(header_bytes(path, file.read(PREFIX_BYTES), size))
    return parse_header(path, header, size)


def header_bytes(path: Path, prefix: bytes, size: int) -> int:
    """Return the length of a file's header.

    Args:
        path: The file, to be named.
        prefix: Its first :data:`PREFIX_BYTES`; fewer when it has no more.
        size: Bytes of the whole file.

    Raises:
        CheckpointError: The file is too short for it, or the header for what it claims.
    """
    if len(prefix) < PREFIX_BYTES:
        raise CheckpointError(f"{path.name} has {size} bytes, too few to hold a header")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER_BYTES, size - PREFIX_BYTES):
        raise CheckpointError(
            f"{path.name} claims a header of {length} bytes in a file of {size}", _TRUNCATED
        )
    return int(length)


def parse_header(path: Path, header: bytes, size: int) -> dict[str, StoredTensor]:
    """Check a file's header; returns its tensors by name.

    Args:
        path: The file.
        header: What follows the prefix.
        size: Bytes of the whole file.

    Raises:
        CheckpointError: The header is no object of tensors, or lies about sizes.
    """
    start = PREFIX_BYTES + len(header)
    tensors = [
        _stored(path, name, row, start)
        for name, row in _parse(path, header).items()
        if name != "__metadata__"
    ]
    _check_layout(path, tensors, start, size)
    return {tensor.name: tensor for tensor in tensors}


def _parse(path: Path, header: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise CheckpointError(
            f"the header of {path.name} is not valid JSON: {error}", _TRUNCATED
        ) from error
    if not isinstance(data, dict) or len(data) > MAX_TENSORS:
        raise CheckpointError(f"the header of {path.name} is not an object of tensors")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _stored(path: Path, name: str, row: Any, data_start: int) -> StoredTensor:
    """Check one tensor's entry on its own."""
    try:
        dtype, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path.name}: the entry of {name} lacks dtype, shape or data_offsets"
        ) from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path.name}: {name} has dtype {dtype!r}, which edgekit does not read",
            f"It reads {', '.join(DTYPES)}",
        )
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if len(numbers) > MAX_RANK + 2 or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise CheckpointError(f"{path.name}: {name} has shape {shape!r}, offsets {[begin, end]!r}")
    size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if end - begin != size:
        raise CheckpointError(
            f"{path.name}: the header lies about {name}: {dtype} {shape} takes {size} bytes, "
            f"its offsets span {end - begin}",
            "The checkpoint is damaged: download it again",
        )
    return StoredTensor(name, dtype, tuple(shape), path, data_start + begin, size)


def _check_layout(path: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    """Tensors must tile the data section: no gap, no overlap, nothing past the end."""
    position = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.size_bytes)):
        if tensor.offset != position:
            raise CheckpointError(
                f"{path.name}: the header lies about {tensor.name}: its bytes overlap another "
                "tensor's or leave a gap",
                "The checkpoint is damaged: download it again",
            )
        position += tensor.size_bytes
        if position > size:
            raise CheckpointError(
                f"{path.name} ends at byte {size}, but {tensor.name} reaches to {position}",
                _TRUNCATED,
            )
    if position != size:
        raise CheckpointError(
            f"{path.name} has {size - position} bytes that no tensor of its header covers",
            "The checkpoint is damaged: download it again",
        )
