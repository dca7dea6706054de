"""Round-to-nearest: a weight on disk becomes packed codes and float16 scales.

``absmax`` maps the largest weight of a group to the largest code. ``mse`` searches the scale of
least squared error around and below it. Scales are rounded to float16, as stored, before the codes
are computed, so that codes are the best for the scale an engine reads. Scales are positive: with
negative ones, too, the squared error would be a tenth smaller, but TensorRT's parser refuses them
("Scale coefficients must all be positive").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import LazyTensor
from edgekit.errors import CheckpointError, QuantizationError
from edgekit.quant.packing import read_scales, to_float16_scales
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import QuantizedWeight, WeightError

STRIP_ROWS = 256
"""Output rows a thread works on at a time: two cache lines of packed codes, a few MB of scratch."""

MSE_FACTORS: dict[int, tuple[float, ...]] = {
    4: tuple(round(1.02 - 0.035 * step, 3) for step in range(12)),
    8: tuple(round(1.0 - 0.01 * step, 2) for step in range(8)),
}
"""Candidate scales by bits, relative to absmax."""

BASE_ERROR_GROWTH = 1.02
"""An earlier version's scale is kept if a group's squared error grows by at most this factor."""
KEEP_LANES = 16
"""Partial sums of a group's squared error."""

CODE_RANGE: dict[int, tuple[int, int]] = {4: (-8, 7), 8: (-127, 127)}


def quantize_weight(
    tensor: LazyTensor,
    scheme: QuantScheme,
    *,
    threads: int = 2,
    scale_exponent: int = 0,
    base_scales: npt.NDArray[np.float32] | None = None,
    advance: Callable[[int], None] | None = None,
) -> QuantizedWeight:
    """Quantize a linear's weight [N, K], a strip of rows at a time.

    Memory is bounded by the packed result plus a few megabytes a thread. Neither the bytes nor the
    error statistics depend on ``threads``.

    Args:
        tensor: The weight. If it has a method ``bf16_rows(start, stop)`` that returns uint16 bits
            rather than None, these are read instead of float32 rows.
        scheme: Bits, group size and scale search.
        threads: Worker threads.
        scale_exponent: Multiply the stored scales by ``2**scale_exponent``; errors are those of the
            weight before that.
        base_scales: float32 [N, K // group_size], scales of an earlier version of this weight (not
            multiplied by ``2**scale_exponent``). Each is kept, as far as it can be stored, where it
            costs next to no accuracy (:data:`BASE_ERROR_GROWTH`), so that codes of unchanged
            weights do not change either.
        advance: Told how many stored bytes each finished strip took, from the worker threads.

    Raises:
        QuantizationError: The shape does not fit the scheme, or a scale overflows float16.
        CheckpointError: The weight holds NaN or infinity.
    """
    rows, columns = _check_shape(tensor, scheme)
    words = np.empty((columns, -(-rows * scheme.bits // 32)), np.uint32)
    scales = np.empty((scheme.groups(columns), rows), np.float16)
    bytes_per_row = tensor.stored_bytes / rows

    def work(start: int) -> tuple[float, float, float]:
        stop = min(start + STRIP_ROWS, rows)
        base = None if base_scales is None else base_scales[start:stop]
        error = _quantize_rows(tensor, scheme, scale_exponent, base, start, stop, words, scales)
        if advance is not None:
            advance(round(bytes_per_row * stop) - round(bytes_per_row * start))
        return error

    with ThreadPoolExecutor(threads, thread_name_prefix="edgekit-quantize") as pool:
        errors = list(pool.map(work, range(0, rows, STRIP_ROWS)))
    squared_error, squared_weight, max_abs_error = zip(*errors, strict=True)
    return QuantizedWeight(
        scheme,
        columns,
        rows,
        _packed(words, rows, scheme.bits),
        scales,
        # Strips are fixed and math.fsum is exact: the totals do not depend on the threads.
        WeightError(math.fsum(squared_error), math.fsum(squared_weight), max(max_abs_error)),
    )


def _packed(words: npt.NDArray[np.uint32], rows: int, bits: int) -> npt.NDArray[Any]:
    """Return 32-bit words [K, J] as :class:`QuantizedWeight` has them; a view if N fills words."""
    if bits == 4:
        return np.ascontiguousarray(words.view(np.uint8)[:, : rows // 2])
    return np.ascontiguousarray(words.view(np.int8)[:, :rows])


def _check_shape(tensor: LazyTensor, scheme: QuantScheme) -> tuple[int, int]:
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise QuantizationError(f"{tensor.name} has shape {list(tensor.shape)}, not [N, K]")
    rows, columns = tensor.shape
    size = scheme.group_size or columns
    if columns % size:
        raise QuantizationError(
            f"{tensor.name} has {columns} input channels, not a multiple of group size {size}",
            "Use a recipe with a smaller group size for it",
        )
    if scheme.bits == 4 and rows % 2:
        raise QuantizationError(
            f"{tensor.name} has an odd number of output channels ({rows}); two codes share a byte",
            "Store it in int8 or float16",
        )
    return rows, columns


def _quantize_rows(
    tensor: LazyTensor,
    scheme: QuantScheme,
    exponent: int,
    base: npt.NDArray[np.float32] | None,
    start: int,
    stop: int,
    words: npt.NDArray[np.uint32],
    scales: npt.NDArray[np.float16],
) -> tuple[float, float, float]:
    """Quantize rows ``start:stop`` into their columns of ``words`` and ``scales``.

    Returns:
        Squared error, squared weight, largest absolute error.
    """
    from edgekit.quant import kernels  # noqa: PLC0415 - Numba takes half a second to import

    source, shift = kernels.as_bits(_raw_rows(tensor, start, stop))
    low, high = (np.float32(code) for code in CODE_RANGE[scheme.bits])
    peaks = np.empty((stop - start, len(scales)), np.uint32)
    bad = kernels.find_peaks(source, shift, peaks)
    if bad >= 0:
        raise CheckpointError(
            f"{tensor.name} holds NaN or infinity, first in row {start + bad}",
            "The checkpoint is damaged: download it again",
        )
    wanted = peaks.view(np.float32)
    wanted /= high
    if scheme.scale_search == "mse":
        factors = np.array(MSE_FACTORS[scheme.bits], np.float32)
        kernels.search_scales(
            source, shift, low, high, factors,
            kernels.SEARCH_CHANNELS, kernels.SEARCH_LANES, wanted,
        )  # fmt: skip
    stored = to_float16_scales(tensor.name, wanted, exponent)
    effective = read_scales(stored, exponent)
    if base is not None:
        # The base may have stored them under another exponent, with bits that are lost here. One
        # that overflows or vanishes is not taken: the kernel compares errors.
        with np.errstate(over="ignore"):
            kept = read_scales((base * np.float32(2.0**exponent)).astype(np.float16), exponent)
        kernels.keep_scales(
            source, shift, low, high, kept, BASE_ERROR_GROWTH, KEEP_LANES, effective
        )
        stored = to_float16_scales(tensor.name, effective, exponent)
    scales[:, start:stop] = stored.T
    codes = np.empty((-(-(stop - start) * scheme.bits // 32), source.shape[1]), np.uint32)
    error: tuple[float, float, float] = kernels.encode(
        source, shift, low, high, effective, scheme.bits, kernels.ERROR_LANES, codes
    )
    first = start * scheme.bits // 32
    tile = np.empty((kernels.TILE_CHANNELS, len(codes)), np.uint32)
    kernels.transpose_words(codes, tile, words[:, first : first + len(codes)])
    return error


def quantize_rows(
    name: str, rows: npt.NDArray[np.float32], *, first_row: int = 0, exponent: int = 0
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Quantize rows of an embedding to int8, one scale a row.

    Args:
        name: Of the tensor, for errors.
        rows: float32 [R, H].
        first_row: Where they stand in the tensor, for errors.
        exponent: Multiply the stored scales by ``2**exponent``; codes are nearest for those.

    Returns:
        Codes [R, H] and scales [R, 1].

    Raises:
        CheckpointError: A value is NaN or infinite.
        QuantizationError: A scale overflows float16.
    """
    peaks = np.abs(rows).max(axis=1, keepdims=True)
    sound = np.isfinite(peaks)
    if not sound.all():
        raise CheckpointError(
            f"{name} holds NaN or infinity, first in row {first_row + int(sound.argmin())}",
            "The checkpoint is damaged: download it again",
        )
    scales = to_float16_scales(name, peaks / np.float32(127), exponent)
    effective = read_scales(scales, exponent)
    return np.rint(rows / effective).clip(-127, 127).astype(np.int8), scales


def _raw_rows(tensor: LazyTensor, start: int, stop: int) -> npt.NDArray[Any]:
    """Return bf16 bits without a conversion where the tensor offers them, else float32."""
    raw = getattr(tensor, "bf16_rows", None)
    rows = raw(start, stop) if raw is not None else None
    return tensor.rows(start, stop) if rows is None else rows
