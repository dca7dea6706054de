"""Numba kernels: one pass from stored weights to codes, scales and error.

A strip of output rows is worked on 16 rows (lanes) at a time and one group of input channels at a
time. The group is transposed into a scratch [group, 16], so every inner loop runs over lanes: LLVM
vectorizes it without reassociating any sum, which strict IEEE arithmetic forbids. No fast-math, so no
FMA contraction either: the same weights give the same bytes on every CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

LANES = 16
_HALF_ULP = np.uint32(0x0FFF)
_ONE = np.uint32(1)
_MANTISSA_SHIFT = np.uint32(13)
_FLOAT16_MASK = np.uint32(0xFFFFE000)
SMALLEST_SCALE = np.float32(2.0**-14)
"""Smallest normal float16: no stored scale is smaller, so dividing by one is always safe."""


@njit(nogil=True, cache=True)
def _load_group(source: Any, row: int, column: int, group: int, bits: Any, shift: Any) -> None:
    """Transpose rows ``row``.. of a group into ``bits`` [group, LANES] as float32 bit patterns.

    ``shift`` is 16 for bf16 (its bits are float32's upper half) and 0 for float32. Lanes past the
    last row repeat it.
    """
    last = source.shape[0] - 1
    for lane in range(LANES):
        n = min(row + lane, last)
        for k in range(group):
            bits[k, lane] = np.uint32(source[n, column + k]) << shift


@njit(nogil=True, cache=True)
def _round_scales(scale: Any, scale_bits: Any) -> None:
    """Round float32 scales to float16 precision, half to even, and keep them normal."""
    for lane in range(LANES):
        if not scale[lane] > SMALLEST_SCALE:
            scale[lane] = SMALLEST_SCALE
    for lane in range(LANES):
        u = scale_bits[lane]
        scale_bits[lane] = (u + _HALF_ULP + ((u >> _MANTISSA_SHIFT) & _ONE)) & _FLOAT16_MASK


@njit(nogil=True, cache=True)
def _squared_error(
    values: Any, group: int, scale: Any, inverse: Any, low: Any, high: Any, error: Any
) -> None:
    """Fill ``error`` [LANES] with the squared error of rounding the group by ``scale``."""
    for lane in range(LANES):
        error[lane] = np.float32(0)
        inverse[lane] = np.float32(1) / scale[lane]
    for k in range(group):
        for lane in range(LANES):
            w = values[k, lane]
            q = np.rint(w * inverse[lane])
            q = min(high, q)
            q = max(low, q)
            d = w - q * scale[lane]
            error[lane] += d * d


@njit(nogil=True, cache=True)
def _least_squares(
    values: Any, group: int, scale: Any, inverse: Any, low: Any, high: Any, trial: Any, norm: Any
) -> None:
    """Fill ``trial`` with the scale of least squared error for the codes ``scale`` gives."""
    for lane in range(LANES):
        trial[lane] = np.float32(0)
        norm[lane] = np.float32(0)
        inverse[lane] = np.float32(1) / scale[lane]
    for k in range(group):
        for lane in range(LANES):
            w = values[k, lane]
            q = np.rint(w * inverse[lane])
            q = min(high, q)
            q = max(low, q)
            trial[lane] += w * q
            norm[lane] += q * q
    for lane in range(LANES):
        trial[lane] = trial[lane] / norm[lane] if norm[lane] > 0 else scale[lane]


@njit(nogil=True, cache=True)
def _keep_better(trial: Any, error: Any, best: Any, best_error: Any) -> None:
    for lane in range(LANES):
        if error[lane] < best_error[lane]:
            best_error[lane] = error[lane]
            best[lane] = trial[lane]


@njit(nogil=True, cache=True)
def quantize_strip(
    source: Any,
    shift: Any,
    group: int,
    low: Any,
    high: Any,
    factors: Any,
    refinements: int,
    codes: Any,
    scales: Any,
    stats: Any,
) -> int:
    """Quantize a strip of rows.

    Args:
        source: uint16 (bf16 bits) or uint32 (float32 bits) [rows, K].
        shift: 16 for bf16, 0 for float32, as uint32.
        group: Input channels that share a scale; divides K.
        low, high: Smallest and largest code, float32.
        factors: float32 candidates, relative to the scale that maps the largest weight to ``high``.
        refinements: Least-squares steps after the search.
        codes: int8 [K, rows], filled.
        scales: float32 [K // group, rows], filled with float16-representable values.
        stats: float64 [3], added to: squared error, squared weight, and the largest absolute
            error, which is replaced.

    Returns:
        -1, or the first row of a lane block that holds NaN or infinity.
    """
    rows, columns = source.shape
    bits = np.empty((group, LANES), np.uint32)
    values = bits.view(np.float32)
    scale_bits = np.empty(LANES, np.uint32)
    trial = scale_bits.view(np.float32)
    inverse = np.empty(LANES, np.float32)
    error = np.empty(LANES, np.float32)
    best = np.empty(LANES, np.float32)
    best_error = np.empty(LANES, np.float32)
    amax = np.empty(LANES, np.float32)
    weight = np.empty(LANES, np.float32)
    worst = np.zeros(LANES, np.float32)
    for row in range(0, rows, LANES):
        live = min(LANES, rows - row)
        for index in range(columns // group):
            _load_group(source, row, index * group, group, bits, shift)
            for lane in range(LANES):
                amax[lane] = np.float32(0)
                weight[lane] = np.float32(0)
                best_error[lane] = np.float32(np.inf)
            for k in range(group):
                for lane in range(LANES):
                    w = values[k, lane]
                    a = abs(w)
                    amax[lane] = max(amax[lane], a)
                    weight[lane] += w * w
            for lane in range(live):
                if not np.isfinite(weight[lane]):
                    return row
            for candidate in range(factors.shape[0]):
                for lane in range(LANES):
                    trial[lane] = amax[lane] / high * factors[candidate]
                _round_scales(trial, scale_bits)
                _squared_error(values, group, trial, inverse, low, high, error)
                _keep_better(trial, error, best, best_error)
            for _ in range(refinements):
                _least_squares(values, group, best, inverse, low, high, trial, error)
                _round_scales(trial, scale_bits)
                _squared_error(values, group, trial, inverse, low, high, error)
                _keep_better(trial, error, best, best_error)
            for lane in range(LANES):
                inverse[lane] = np.float32(1) / best[lane]
            for k in range(group):
                for lane in range(LANES):
                    w = values[k, lane]
                    q = np.rint(w * inverse[lane])
                    q = min(high, q)
                    q = max(low, q)
                    d = abs(w - q * best[lane])
                    worst[lane] = max(worst[lane], d)
                    values[k, lane] = q
            for k in range(group):
                for lane in range(live):
                    codes[index * group + k, row + lane] = np.int8(values[k, lane])
            for lane in range(live):
                scales[index, row + lane] = best[lane]
                stats[0] += best_error[lane]
                stats[1] += weight[lane]
    for lane in range(LANES):
        stats[2] = max(stats[2], worst[lane])
    return -1


@njit(nogil=True, cache=True)
def pack_strip(codes: Any, packed: Any) -> None:
    """Pack int8 codes [K, rows] into nibbles uint8 [K, rows // 2], low nibble first."""
    for k in range(codes.shape[0]):
        for j in range(packed.shape[1]):
            low = np.uint8(codes[k, 2 * j]) & np.uint8(15)
            high = np.uint8(codes[k, 2 * j + 1]) << np.uint8(4)
            packed[k, j] = low | np.uint8(high)


def as_bits(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], np.uint32]:
    """Return the bit patterns :func:`quantize_strip` takes, and their shift."""
    if rows.dtype == np.uint16:
        return rows, np.uint32(16)
    return rows.view(np.uint32), np.uint32(0)
