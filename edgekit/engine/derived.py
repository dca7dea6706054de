"""Makes the weights that an ``ort`` graph reads and a bundle does not store.

See ``contracts.derived`` for what they are. Each is a new array in main memory, as large as its
sources; ONNX Runtime packs it into a layout of its own, or copies it to a GPU, and lets go of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.layout import listed_files
from edgekit.bundle.reader import Bundle, bundle_errors
from edgekit.contracts import derived
from edgekit.contracts.derived import DerivedTensor, derived_path, parse_derived
from edgekit.contracts.manifest import GraphEntry
from edgekit.errors import BundleError

Array = npt.NDArray[Any]
TILE = 256
"""Rows and columns transposed at once: what both sides touch stays in the second-level cache."""
BYTE_OF_ZERO, PAIR_OF_ZEROS = 0x80, 0x88
"""A code of 0 is 2**(bits - 1) once it is unsigned: flipping these bits makes it so."""
_BITS = {"int4": 4, "int8": 8}


def make_derived(bundle: Bundle, entry: GraphEntry, threads: int) -> dict[str, Array]:
    """Return the arrays that a graph's list names.

    Args:
        bundle: An opened bundle.
        entry: A graph of the ``ort`` dialect.
        threads: How many are made at a time.

    Raises:
        BundleError: The list is missing or wrong, or does not go with the bundle's tensors.
    """
    path = derived_path(entry.path)
    if path not in listed_files(bundle.manifest):
        raise BundleError(f"{bundle.path} does not list {path}", "Build the bundle again")
    with bundle_errors(bundle.path):
        wanted = parse_derived((bundle.path / path).read_bytes(), path)
    entries = {tensor.name: tensor for tensor in bundle.manifest.tensors}

    def make(tensor: DerivedTensor) -> Array:
        sources = [entries[name] for name in tensor.sources if name in entries]
        if len(sources) != len(tensor.sources):
            raise BundleError(f"{path}: {tensor.name} is made from a tensor that is not there")
        try:
            arrays = [bundle.read_tensor(source) for source in sources]
            return make_tensor(tensor, arrays, [source.dtype for source in sources])
        except ValueError as error:
            raise BundleError(f"{path}: {tensor.name}: {error}") from error

    with ThreadPoolExecutor(threads) as pool:
        arrays = list(pool.map(make, wanted))
    return {tensor.name: array for tensor, array in zip(wanted, arrays, strict=True)}


def make_tensor(tensor: DerivedTensor, sources: Sequence[Array], dtypes: Sequence[str]) -> Array:
    """Make one array.

    Args:
        tensor: What to make.
        sources: The stored arrays, int4 two a byte.
        dtypes: Their stored types.

    Raises:
        ValueError: The sources are not of its kind, or do not give its shape.
    """
    if tensor.kind == derived.CODES:
        return nbits_codes(sources, dtypes, tensor.shape)
    if tensor.kind == derived.SCALES:
        made = nbits_scales(sources, tensor.shape[-1]).astype(tensor.dtype)
    elif tensor.kind == derived.JOIN:
        made = np.concatenate(sources).astype(tensor.dtype)
    else:
        rows = np.minimum(np.arange(tensor.shape[0]), len(sources[0]) - 1)
        made = sources[0][rows].astype(tensor.dtype)
    if made.shape != tensor.shape:
        msg = f"its sources give {list(made.shape)}, not {list(tensor.shape)}"
        raise ValueError(msg)
    return made


def nbits_codes(sources: Sequence[Array], dtypes: Sequence[str], shape: tuple[int, ...]) -> Array:
    """Return codes as MatMulNBits wants them.

    Args:
        sources: Stored codes [K, Ni]: int8, or two int4 a byte along N.
        dtypes: Their stored types, all one.
        shape: [N, blocks, bytes of a block] of the result.

    Returns:
        uint8 of that shape.

    Raises:
        ValueError: Types differ, or the sources do not give the shape.
    """
    if len(set(dtypes)) != 1 or dtypes[0] not in _BITS or len(shape) != 3:
        msg = f"no codes of {' and '.join(sorted(set(dtypes)))} make {list(shape)}"
        raise ValueError(msg)
    bits = _BITS[dtypes[0]]
    per_byte = 8 // bits
    channels, width = sources[0].shape[0], sum(s.shape[1] * per_byte for s in sources)
    room = shape[1] * shape[2]
    fits = all(s.shape[0] == channels for s in sources) and channels % per_byte == 0
    if not fits or width != shape[0] or not 0 <= room * per_byte - channels < shape[2] * per_byte:
        msg = f"codes of {channels} by {width} do not make {list(shape)}"
        raise ValueError(msg)
    zero = BYTE_OF_ZERO if bits == 8 else PAIR_OF_ZEROS
    made = np.empty((width, room), np.uint8)
    made[:, channels // per_byte :] = zero
    at = 0
    for source in sources:
        count = source.shape[1] * per_byte
        _transpose(source.view(np.uint8), made[at : at + count, : channels // per_byte], zero)
        at += count
    return made.reshape(shape)


def _transpose(source: Array, made: Array, zero: int) -> None:
    """Write ``source`` [K, N] (or two nibbles a byte, [K, N / 2]) transposed into ``made``."""
    channels, columns = source.shape
    pairs = zero == PAIR_OF_ZEROS
    for row in range(0, channels, TILE):
        for column in range(0, columns, TILE):
            tile = source[row : row + TILE, column : column + TILE]
            if not pairs:
                made[column : column + TILE, row : row + TILE] = (tile ^ zero).T
                continue
            even, odd = tile[0::2], tile[1::2]
            places = slice(row // 2, (row + TILE) // 2)
            start, stop = 2 * column, 2 * (column + tile.shape[1])
            made[start:stop:2, places] = (((even & 15) | (odd << 4)) ^ zero).T
            made[start + 1 : stop : 2, places] = (((even >> 4) | (odd & 0xF0)) ^ zero).T


def nbits_scales(sources: Sequence[Array], blocks: int) -> Array:
    """Return scales [N, blocks] of stored ones [G, Ni], each repeated for the blocks of its group.

    Raises:
        ValueError: The blocks are no multiple of the groups.
    """
    joined = np.concatenate(sources, axis=1).T
    if blocks % joined.shape[1]:
        msg = f"{joined.shape[1]} groups do not make {blocks} blocks"
        raise ValueError(msg)
    return np.repeat(joined, blocks // joined.shape[1], axis=1)


def as_ort_values(arrays: Mapping[str, Array]) -> tuple[list[str], list[Any]]:
    """Return names and OrtValues over the arrays' memory."""
    import onnxruntime as ort  # noqa: PLC0415

    return list(arrays), [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
