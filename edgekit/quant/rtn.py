"""Round-to-nearest: a weight on disk becomes packed codes and float16 scales.

``absmax`` maps the largest weight of a group to the largest code. ``mse`` tries a grid of smaller
scales, then refits by least squares, and keeps the scale of least squared error; codes are always
computed with the scale as stored, rounded to float16.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import LazyTensor
from edgekit.errors import CheckpointError, QuantizationError
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import QuantizedWeight, WeightError

STRIP_ROWS = 128
"""Output rows a thread works on at a time: a cache line of packed codes, a few MB of scratch."""

MSE_FACTORS = tuple(1.0 - 0.04 * step for step in range(11))
"""Candidate scales, relative to absmax: 1.00, 0.96, ... 0.60."""
MSE_REFINEMENTS = 2

CODE_RANGE: dict[int, tuple[int, int]] = {4: (-8, 7), 8: (-127, 127)}


def quantize_weight(
    tensor: LazyTensor,
    scheme: QuantScheme,
    *,
    threads: int = 2,
    scale_exponent: int = 0,
    advance: Callable[[int], None] | None = None,
) -> QuantizedWeight:
    """Quantize a linear's weight [N, K], a strip of rows at a time.

    Memory is bounded by the packed result plus a few megabytes a thread. The bytes do not depend on
    ``threads``.

    Args:
        tensor: The weight.
        scheme: Bits, group size and scale search.
        threads: Worker threads.
        scale_exponent: Multiply the stored scales by ``2**scale_exponent``.
        advance: Told how many stored bytes each finished strip took.

    Raises:
        QuantizationError: The shape does not fit the scheme, or a scale overflows float16.
        CheckpointError: The weight holds NaN or infinity.
    """
    rows, columns = _check_shape(tensor, scheme)
    width = rows // 2 if scheme.bits == 4 else rows
    packed = np.empty((columns, width), np.uint8 if scheme.bits == 4 else np.int8)
    scales = np.empty((scheme.groups(columns), rows), np.float32)
    bytes_per_row = tensor.stored_bytes / rows

    def work(start: int) -> npt.NDArray[np.float64]:
        stop = min(start + STRIP_ROWS, rows)
        stats = _quantize_rows(tensor, scheme, start, stop, packed, scales)
        if advance is not None:
            advance(round(bytes_per_row * stop) - round(bytes_per_row * start))
        return stats

    with ThreadPoolExecutor(threads, thread_name_prefix="edgekit-quantize") as pool:
        parts = np.stack(list(pool.map(work, range(0, rows, STRIP_ROWS))))
    return QuantizedWeight(
        scheme,
        columns,
        rows,
        packed,
        _stored_scales(tensor.name, scales, scale_exponent),
        WeightError(
            # math.fsum is exact, so the total does not depend on how strips were shared out.
            math.fsum(parts[:, 0]),
            math.fsum(parts[:, 1]),
            float(parts[:, 2].max()),
        ),
    )


def _check_shape(tensor: LazyTensor, scheme: QuantScheme) -> tuple[int, int]:
    if len(tensor.shape) != 2:
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
    start: int,
    stop: int,
    packed: npt.NDArray[Any],
    scales: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Quantize rows ``start:stop`` into their columns of ``packed`` and ``scales``."""
    from edgekit.quant import kernels  # noqa: PLC0415 - Numba takes half a second to import

    source, shift = kernels.as_bits(_raw_rows(tensor, start, stop))
    low, high = CODE_RANGE[scheme.bits]
    factors, refinements = _search(scheme)
    codes = np.empty((source.shape[1], stop - start), np.int8)
    found = np.empty((scales.shape[0], stop - start), np.float32)
    stats = np.zeros(3)
    group = scheme.group_size or source.shape[1]
    bad = kernels.quantize_strip(
        source, shift, group, kernels.LANES, np.float32(low), np.float32(high), factors,
        refinements, codes, found, stats,
    )  # fmt: skip
    if bad >= 0:
        raise CheckpointError(
            f"{tensor.name} holds NaN or infinity, first in row {start + bad}",
            "The checkpoint is damaged: download it again",
        )
    scales[:, start:stop] = found
    if scheme.bits == 8:
        packed[:, start:stop] = codes
    else:
        nibbles = np.empty((codes.shape[0], codes.shape[1] // 2), np.uint8)
        kernels.pack_strip(codes, nibbles)
        packed[:, start // 2 : stop // 2] = nibbles
    return stats


@functools.cache
def _search(scheme: QuantScheme) -> tuple[npt.NDArray[np.float32], int]:
    if scheme.scale_search == "absmax":
        return np.ones(1, np.float32), 0
    return np.array(MSE_FACTORS, np.float32), MSE_REFINEMENTS


def _raw_rows(tensor: LazyTensor, start: int, stop: int) -> npt.NDArray[Any]:
    """Return bf16 bits without a conversion where the tensor offers them, else float32."""
    raw = getattr(tensor, "bf16_rows", None)
    rows = raw(start, stop) if raw is not None else None
    return tensor.rows(start, stop) if rows is None else rows


def _stored_scales(
    name: str, scales: npt.NDArray[np.float32], exponent: int
) -> npt.NDArray[np.float16]:
    stored = np.ldexp(scales, exponent)
    if not stored.max(initial=0.0) <= np.finfo(np.float16).max:
        raise QuantizationError(
            f"{name} has weights too large for float16 scales", "Store it in float32 or rescale it"
        )
    return stored.astype(np.float16)
