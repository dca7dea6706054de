"""Writing safetensors shards tensor by tensor, so that no tensor is ever held whole.

Format: ``safetensors.py``. Shapes are known before any byte is, so each header comes first.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.safetensors import DTYPES

MAX_SHARD_BYTES = 4_000_000_000
INDEX = "model.safetensors.index.json"
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        name: Its key.
        dtype: As safetensors spells it.
        shape: Its shape.
        chunks: Makes its elements in order, C-contiguous arrays of that type.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[npt.NDArray[Any]]]

    @property
    def size_bytes(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def write_shards(
    folder: Path,
    tensors: Sequence[NewTensor],
    advance: Callable[[int, str], None],
    *,
    shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors in order as ``model-0000N-of-0000M.safetensors`` and their index.

    Args:
        folder: An empty folder.
        tensors: What to write.
        advance: Told of each tensor's bytes and name.
        shard_bytes: Most bytes of a shard; a larger tensor has one of its own.

    Raises:
        OSError: The folder cannot be written; the caller says so.
    """
    shards = _split(tensors, shard_bytes)
    where = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        where.update(dict.fromkeys((tensor.name for tensor in shard), name))
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                _write(file, tensor)
                advance(tensor.size_bytes, tensor.name)
            file.flush()
            os.fsync(file.fileno())
    total = sum(tensor.size_bytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _split(tensors: Sequence[NewTensor], shard_bytes: int) -> list[list[NewTensor]]:
    shards: list[list[NewTensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.size_bytes > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.size_bytes
    return shards


def _header(shard: Sequence[NewTensor]) -> bytes:
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in shard:
        end = begin + tensor.size_bytes
        rows[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _write(file: BinaryIO, tensor: NewTensor) -> None:
    written, wanted = 0, np.dtype(DTYPES[tensor.dtype])
    for chunk in tensor.chunks():
        if chunk.dtype != wanted:
            raise AssertionError(f"{tensor.name}: {chunk.dtype} is not {wanted}")
        written += file.write(np.ascontiguousarray(chunk).data)
    if written != tensor.size_bytes:
        raise AssertionError(f"{tensor.name}: {written} bytes are not {tensor.size_bytes}")
