"""Numba kernels: one pass from stored weights to codes, scales and error.

A block of output rows (lanes) and one group of input channels are worked on at a time. The group is
transposed into a scratch [group, lanes], so that every inner loop runs over lanes: it vectorizes
without reassociating a sum, which IEEE arithmetic forbids, and the result is already in the
transposed order that is stored. No fast-math, so no FMA contraction: the same weights give the same
bytes on every CPU. The number of lanes is an argument, not a constant, because LLVM unrolls short
constant loops into scalar code before it vectorizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

LANES = 32
"""Rows worked on at once: a group of 128 float32 is then half of a 32 KiB first-level cache."""
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_HALF_ULP = np.uint32(0x0FFF)
_ONE = np.uint32(1)
_MANTISSA_SHIFT = np.uint32(13)
_FLOAT16_MASK = np.uint32(0xFFFFE000)
_SMALLEST_SCALE = np.float32(2.0**-14)
"""Smallest normal float16: no scale is smaller, so dividing by one is always safe."""


@njit(nogil=True, cache=True)
def _load(source: Any, shift: Any, row: int, start: int, bits: Any, peak: Any) -> None:
    """Transpose a group of rows ``row``.. into ``bits`` [group, lanes]; find each lane's peak.

    Lanes past the last row repeat it. ``peak`` [lanes] gets the bit pattern of the largest
    magnitude: NaN and infinity compare largest.
    """
    group, lanes = bits.shape
    last = source.shape[0] - 1
    for lane in range(lanes):
        n = min(row + lane, last)
        for k in range(group):
            bits[k, lane] = np.uint32(source[n, start + k]) << shift
        peak[lane] = np.uint32(0)
    for k in range(group):
        for lane in range(lanes):
            peak[lane] = max(peak[lane], bits[k, lane] & _MAGNITUDE)


@njit(nogil=True, cache=True)
def _first_non_finite(peak: Any, live: int) -> int:
    for lane in range(live):
        if peak[lane] >= _INFINITY:
            return lane
    return -1


@njit(nogil=True, cache=True)
def _store_scales(scale: Any, scale_bits: Any) -> None:
    """Round float32 scales [lanes] to float16 precision, half to even, and keep them normal."""
    for lane in range(scale.shape[0]):
        scale[lane] = max(scale[lane], _SMALLEST_SCALE)
    for lane in range(scale.shape[0]):
        u = scale_bits[lane]
        scale_bits[lane] = (u + _HALF_ULP + ((u >> _MANTISSA_SHIFT) & _ONE)) & _FLOAT16_MASK


@njit(nogil=True, cache=True)
def _try(
    values: Any, low: Any, high: Any, trial: Any, inverse: Any, error: Any, best: Any, least: Any
) -> None:
    """Keep ``trial`` scales [lanes] in ``best`` where their squared error is below ``least``."""
    group, lanes = values.shape
    for lane in range(lanes):
        error[lane] = np.float32(0)
        inverse[lane] = np.float32(1) / trial[lane]
    for k in range(group):
        for lane in range(lanes):
            w = values[k, lane]
            q = min(max(np.rint(w * inverse[lane]), low), high)
            d = w - q * trial[lane]
            error[lane] += d * d
    for lane in range(lanes):
        if error[lane] < least[lane]:
            least[lane] = error[lane]
            best[lane] = trial[lane]


@njit(nogil=True, cache=True)
def _refit(
    values: Any, low: Any, high: Any, best: Any, inverse: Any, trial: Any, norm: Any
) -> None:
    """Fill ``trial`` with the scales of least squared error for the codes ``best`` gives."""
    group, lanes = values.shape
    for lane in range(lanes):
        trial[lane] = np.float32(0)
        norm[lane] = np.float32(0)
        inverse[lane] = np.float32(1) / best[lane]
    for k in range(group):
        for lane in range(lanes):
            w = values[k, lane]
            q = min(max(np.rint(w * inverse[lane]), low), high)
            trial[lane] += w * q
            norm[lane] += q * q
    for lane in range(lanes):
        if norm[lane] > np.float32(0):
            trial[lane] /= norm[lane]
        else:
            trial[lane] = best[lane]


@njit(nogil=True, cache=True)
def _encode(
    values: Any, low: Any, high: Any, scale: Any, inverse: Any, worst: Any, weight: Any
) -> None:
    """Replace ``values`` by their codes; add up squares, and keep the largest error, per lane."""
    group, lanes = values.shape
    for lane in range(lanes):
        inverse[lane] = np.float32(1) / scale[lane]
        weight[lane] = np.float32(0)
    for k in range(group):
        for lane in range(lanes):
            w = values[k, lane]
            q = min(max(np.rint(w * inverse[lane]), low), high)
            worst[lane] = max(worst[lane], abs(w - q * scale[lane]))
            weight[lane] += w * w
            values[k, lane] = q


@njit(nogil=True, cache=True)
def quantize_strip(  # noqa: C901 - one loop nest, kept whole for the compiler
    source: Any,
    shift: Any,
    group: int,
    lanes: int,
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
        shift: uint32 that makes float32 bits of them: 16 for bf16, 0 for float32.
        group: Input channels that share a scale; divides K.
        lanes: Rows worked on at once.
        low: Smallest code, float32.
        high: Largest code, float32.
        factors: float32 candidates, relative to the scale that maps the largest weight to ``high``.
        refinements: Least-squares steps after the search.
        codes: int8 [K, rows], filled.
        scales: float32 [K // group, rows], filled with float16-representable values.
        stats: float64 [3]: squared error and squared weight are added to, the largest absolute
            error is replaced when larger.

    Returns:
        -1, or the first row that holds NaN or infinity.
    """
    bits = np.empty((group, lanes), np.uint32)
    values = bits.view(np.float32)
    peak = np.empty(lanes, np.uint32)
    trial_bits = np.empty(lanes, np.uint32)
    trial = trial_bits.view(np.float32)
    best = np.empty(lanes, np.float32)
    least = np.empty(lanes, np.float32)
    inverse = np.empty(lanes, np.float32)
    error = np.empty(lanes, np.float32)
    worst = np.zeros(lanes, np.float32)
    for row in range(0, source.shape[0], lanes):
        live = min(lanes, source.shape[0] - row)
        for index in range(source.shape[1] // group):
            _load(source, shift, row, index * group, bits, peak)
            bad = _first_non_finite(peak, live)
            if bad >= 0:
                return row + bad
            amax = peak.view(np.float32)
            least[:] = np.inf
            for step in range(factors.shape[0] + refinements):
                if step < factors.shape[0]:
                    for lane in range(lanes):
                        trial[lane] = amax[lane] / high * factors[step]
                else:
                    _refit(values, low, high, best, inverse, trial, error)
                _store_scales(trial, trial_bits)
                _try(values, low, high, trial, inverse, error, best, least)
            _encode(values, low, high, best, inverse, worst, error)
            for k in range(group):
                for lane in range(live):
                    codes[index * group + k, row + lane] = np.int8(values[k, lane])
            for lane in range(live):
                scales[index, row + lane] = best[lane]
                stats[0] += least[lane]
                stats[1] += error[lane]
    for lane in range(lanes):
        stats[2] = max(stats[2], np.float64(worst[lane]))
    return -1


@njit(nogil=True, cache=True)
def pack_strip(codes: Any, nibbles: Any) -> None:
    """Pack int8 codes [K, rows] into nibbles uint8 [K, rows // 2], low nibble first."""
    for k in range(codes.shape[0]):
        for j in range(nibbles.shape[1]):
            low = np.uint8(codes[k, 2 * j]) & np.uint8(15)
            high = np.uint8(codes[k, 2 * j + 1]) << np.uint8(4)
            nibbles[k, j] = low | np.uint8(high)


def as_bits(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], np.uint32]:
    """Return the bit patterns :func:`quantize_strip` takes, and their shift."""
    if rows.dtype == np.uint16:
        return rows, np.uint32(16)
    return rows.view(np.uint32), np.uint32(0)


@njit(nogil=True, cache=True)
def dequantize_int4(packed: Any, scales: Any, group: int, tile: int, out: Any) -> None:
    """Fill float32 ``out`` [rows, K] from stored nibbles uint8 [K, rows // 2].

    Args:
        packed: Stored codes, transposed, low nibble first.
        scales: float32 [K // group, rows].
        group: Input channels that share a scale.
        tile: Input channels unpacked at a time, so that the transposition stays in cache.
        out: float32 [rows, K].
    """
    columns = packed.shape[0]
    for start in range(0, columns, tile):
        stop = min(start + tile, columns)
        for j in range(packed.shape[1]):
            for k in range(start, stop):
                byte = packed[k, j]
                low = np.int8(byte << np.uint8(4)) >> np.int8(4)
                high = np.int8(byte) >> np.int8(4)
                out[2 * j, k] = np.float32(low) * scales[k // group, 2 * j]
                out[2 * j + 1, k] = np.float32(high) * scales[k // group, 2 * j + 1]
