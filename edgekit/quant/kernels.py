"""Numba kernels: from stored weights to scales, codes and error, a strip of rows at a time.

Everything is laid out so that inner loops vectorize although no sum is ever reassociated, which
IEEE arithmetic forbids and fast-math would allow:

- The search for scales transposes one group of many rows into [channels, lanes]: its loops run over
  lanes, one row each, and every lane sums in the order of the input channels.
- Encoding runs along a row, whose scales are known by then. Its squared errors are summed in lanes.
- The codes of neighbouring rows are gathered into 32-bit words, and words, not codes, are
  transposed: eight times fewer elements move.

Without fast-math there is no FMA contraction either: the same weights give the same bytes on every
CPU. Lane counts are arguments, not constants, because LLVM unrolls short constant loops into scalar
code before it vectorizes. Indices that are sums are cast to unsigned: for signed ones Numba emits
the wraparound of negative indices, which costs more than the load itself.

``source`` is uint16 (bf16 bits) or uint32 (float32 bits) [rows, K]; shifted left by ``shift`` (16
or 0) it is float32 bits. ``low`` and ``high`` are the smallest and largest code, as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

SEARCH_CHANNELS = 128
SEARCH_LANES = 64
"""Block of the search: 128 channels of 64 rows in float32 are 32 KiB, a first-level cache."""
ERROR_LANES = 128
"""Partial sums of a row's squares."""
TILE_CHANNELS = 32
"""Channels whose words are transposed at a time: two cache lines of a row."""
WORD_BITS = 32
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_SMALLEST_TRIED = np.float32(2.0**-60)
"""Keeps 1 / scale finite while scales are searched. The smallest that is stored is another, far
larger: ``packing.SMALLEST_SCALE``."""
_U = np.uint64


def as_bits(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], np.uint32]:
    """Return the ``source`` and ``shift`` of rows that are bf16 bits (uint16) or float32."""
    if rows.dtype == np.uint16:
        return rows, np.uint32(16)
    return rows.view(np.uint32), np.uint32(0)


@njit(nogil=True, cache=True)
def _widen(source: Any, shift: Any, row: int, bits: Any) -> None:
    """Fill ``bits`` uint32 [K] with a row's float32 bits."""
    for k in range(bits.shape[0]):
        bits[k] = np.uint32(source[row, k]) << shift


@njit(nogil=True, cache=True)
def find_peaks(source: Any, shift: Any, peaks: Any) -> int:
    """Fill ``peaks`` with the float32 bits of each group's largest magnitude.

    Args:
        source: See the module.
        shift: See the module.
        peaks: uint32 [rows, groups], filled.

    Returns:
        -1, or the first row that holds NaN or infinity (their bits compare largest); then
        ``peaks`` is incomplete.
    """
    group = source.shape[1] // peaks.shape[1]
    for row in range(source.shape[0]):
        worst = np.uint32(0)
        for index in range(peaks.shape[1]):
            peak = np.uint32(0)
            for k in range(group):
                bits = np.uint32(np.uint32(source[row, _U(index * group + k)]) << shift)
                peak = max(peak, bits & _MAGNITUDE)
            peaks[row, index] = peak
            worst = max(worst, peak)
        if worst >= _INFINITY:
            return row
    return -1


@njit(nogil=True, cache=True)
def _transpose_group(source: Any, shift: Any, row: int, start: int, bits: Any) -> None:
    """Fill ``bits`` [channels, lanes] from rows ``row``..; lanes past the last row repeat it."""
    last = source.shape[0] - 1
    for lane in range(bits.shape[1]):
        n = min(row + lane, last)
        for k in range(bits.shape[0]):
            bits[k, lane] = np.uint32(source[_U(n), _U(start + k)]) << shift


@njit(nogil=True, cache=True)
def _project(values: Any, low: Any, high: Any, inverse: Any, dot: Any, norm: Any) -> None:
    """Sum w * q and q * q, where q is the code of w, per lane and in channel order."""
    channels, lanes = values.shape
    dot[:] = np.float32(0)
    norm[:] = np.float32(0)
    for k in range(channels):
        for lane in range(lanes):
            w = values[k, lane]
            q = min(max(np.rint(w * inverse[lane]), low), high)
            dot[lane] += w * q
            norm[lane] += q * q


@njit(nogil=True, cache=True)
def _try_factors(values: Any, low: Any, high: Any, factors: Any, work: Any, sums: Any) -> None:
    """Add a part of a group [channels, lanes] to the dots and norms of every candidate scale.

    ``work`` is float32 [4, lanes]: scratch, and in its last row the absmax scales. ``sums`` is
    float64 [2, steps, lanes].
    """
    lanes = work.shape[1]
    for step in range(factors.shape[0]):
        for lane in range(lanes):
            scale = max(work[3, lane] * factors[step], _SMALLEST_TRIED)
            work[0, lane] = np.float32(1) / scale
        _project(values, low, high, work[0], work[1], work[2])
        for lane in range(lanes):
            sums[0, step, lane] += work[1, lane]
            sums[1, step, lane] += work[2, lane]


@njit(nogil=True, cache=True)
def _best_scale(sums: Any, lane: int) -> float:
    """Return the least-squares scale of the step of largest dot**2 / norm; 0 if all norms are.

    ``sums`` is float64 [2, steps, lanes], dots and norms.
    """
    dot, norm = sums[0, 0, lane], sums[1, 0, lane]
    for step in range(1, sums.shape[1]):
        d, n = sums[0, step, lane], sums[1, step, lane]
        if d * d * norm > dot * dot * n:
            dot, norm = d, n
    return dot / norm if norm > 0.0 else 0.0


@njit(nogil=True, cache=True)
def search_scales(
    source: Any, shift: Any, low: Any, high: Any, factors: Any, channels: int, lanes: int,
    scales: Any,
) -> None:  # fmt: skip
    """Replace absmax scales by scales of less squared error.

    For the codes q that a candidate scale gives, the scale of least squared error is (w.q) / (q.q)
    and lowers the squared error by (w.q)**2 / (q.q): the candidate that lowers it most wins, and
    its least-squares scale is taken.

    Args:
        source: See the module.
        shift: See the module.
        low: See the module.
        high: See the module.
        factors: float32 [steps], candidates relative to absmax.
        channels: Channels worked on at once; a longer group is worked on in parts.
        lanes: Rows worked on at once.
        scales: float32 [rows, groups], absmax scales, replaced; 0 for a group of zeros.
    """
    rows, groups = scales.shape
    group = source.shape[1] // groups
    bits = np.empty((min(channels, group), lanes), np.uint32)
    values = bits.view(np.float32)
    work = np.empty((4, lanes), np.float32)
    sums = np.empty((2, factors.shape[0], lanes), np.float64)
    for row in range(0, rows, lanes):
        for index in range(groups):
            for lane in range(lanes):
                work[3, lane] = scales[min(row + lane, rows - 1), index]
            sums[:] = 0.0
            for start in range(0, group, bits.shape[0]):
                size = min(bits.shape[0], group - start)
                _transpose_group(source, shift, row, index * group + start, bits[:size])
                _try_factors(values[:size], low, high, factors, work, sums)
            for lane in range(min(lanes, rows - row)):
                scales[row + lane, index] = _best_scale(sums, lane)


@njit(nogil=True, cache=True)
def _sum_squares(values: Any, lanes: Any, total: Any) -> None:
    """Add the squares of ``values`` [K] to ``total[0]``, element k by lane k modulo their number.

    ``lanes`` is scratch, float32; ``total`` is float64.
    """
    count = lanes.shape[0]
    lanes[:] = np.float32(0)
    for start in range(0, values.shape[0], count):
        for lane in range(min(count, values.shape[0] - start)):
            v = values[_U(start + lane)]
            lanes[lane] += v * v
    for lane in range(count):
        total[0] += lanes[lane]


@njit(nogil=True, cache=True)
def _largest(pattern: Any) -> Any:
    """Return the bits of the largest magnitude in ``pattern`` uint32 [K]."""
    worst = np.uint32(0)
    for k in range(pattern.shape[0]):
        worst = max(worst, pattern[k] & _MAGNITUDE)
    return worst


@njit(nogil=True, cache=True)
def _rounding_error(values: Any, low: Any, high: Any, scale: Any, lanes: Any) -> float:
    """Return the squared error of rounding a group under a scale; ``lanes`` is scratch."""
    inverse = np.float32(1) / scale
    count = lanes.shape[0]
    lanes[:] = np.float32(0)
    for start in range(0, values.shape[0], count):
        for lane in range(min(count, values.shape[0] - start)):
            w = values[_U(start + lane)]
            error = w - min(max(np.rint(w * inverse), low), high) * scale
            lanes[lane] += error * error
    total = 0.0
    for lane in range(count):
        total += lanes[lane]
    return total


@njit(nogil=True, cache=True)
def keep_scales(
    source: Any, shift: Any, low: Any, high: Any, base: Any, growth: float, lanes: int, scales: Any
) -> None:
    """Replace scales by those of an earlier version wherever they are nearly as good.

    Args:
        source: See the module.
        shift: See the module.
        low: See the module.
        high: See the module.
        base: float32 [rows, groups], the earlier scales; one that is not positive is not taken.
        growth: Largest factor on a group's squared error.
        lanes: Partial sums of a group's squares.
        scales: float32 [rows, groups], positive, replaced.
    """
    columns = source.shape[1]
    group = columns // scales.shape[1]
    pattern = np.empty(columns, np.uint32)
    values = pattern.view(np.float32)
    sums = np.empty(lanes, np.float32)
    for row in range(source.shape[0]):
        _widen(source, shift, row, pattern)
        for index in range(scales.shape[1]):
            old = base[row, index]
            if not old > np.float32(0) or old == scales[row, index]:
                continue
            part = values[index * group : (index + 1) * group]
            least = _rounding_error(part, low, high, scales[row, index], sums)
            if _rounding_error(part, low, high, old, sums) <= least * growth:
                scales[row, index] = old


@njit(nogil=True, cache=True)
def encode(
    source: Any, shift: Any, low: Any, high: Any, scales: Any, bits: int, lanes: int, words: Any
) -> tuple[float, float, float]:
    """Round a strip to codes of given scales.

    ``scales`` is float32 [rows, groups], positive. ``words`` is uint32 [ceil(rows * bits / 32), K]
    and is filled with the codes of ``bits`` (4 or 8): those of 32 / bits rows in two's complement,
    the first in the lowest bits; zeros past the last row. ``lanes`` are partial sums of a row's
    squares; for the others see the module.

    Returns:
        Squared error, squared weight, largest absolute error.
    """
    group = source.shape[1] // scales.shape[1]
    pattern = np.empty(source.shape[1], np.uint32)
    values = pattern.view(np.float32)
    squares = np.empty((2, lanes), np.float32)
    mask = np.uint32((1 << bits) - 1)
    totals, worst = np.zeros(2), np.uint32(0)
    words[:] = np.uint32(0)
    for row in range(source.shape[0]):
        target = _U(row * bits // WORD_BITS)
        place = np.uint32(1 << (row * bits % WORD_BITS))
        _widen(source, shift, row, pattern)
        _sum_squares(values, squares[1], totals[1:])
        for index in range(scales.shape[1]):
            scale = scales[row, index]
            inverse = np.float32(1) / scale
            for j in range(group):
                k = _U(index * group + j)
                q = min(max(np.rint(values[k] * inverse), low), high)
                values[k] -= q * scale
                words[target, k] |= np.uint32(np.uint32(np.int32(q)) & mask) * place
        _sum_squares(values, squares[0], totals)
        worst = max(worst, _largest(pattern))
    pattern[0] = worst
    return totals[0], totals[1], values[0]


@njit(nogil=True, cache=True)
def transpose_words(words: Any, tile: Any, packed: Any) -> None:
    """Write ``words`` uint32 [J, K] into ``packed`` uint32 [K, J], which may be a slice.

    ``tile`` uint32 [channels, J] is scratch: strides of a power of two would meet in the same sets
    of the cache.
    """
    for start in range(0, words.shape[1], tile.shape[0]):
        size = min(tile.shape[0], words.shape[1] - start)
        for j in range(words.shape[0]):
            for k in range(size):
                tile[k, j] = words[j, _U(start + k)]
        for k in range(size):
            for j in range(words.shape[0]):
                packed[_U(start + k), j] = tile[k, j]


@njit(nogil=True, cache=True)
def dequantize_int4(packed: Any, scales: Any, group: int, out: Any) -> None:
    """Fill float32 ``out`` [K, rows] from stored nibbles uint8 [K, rows // 2].

    Args:
        packed: Stored codes, transposed, low nibble first; may be a slice.
        scales: float32 [K // group, rows].
        group: Input channels that share a scale.
        out: float32 [K, rows].
    """
    for k in range(packed.shape[0]):
        index = k // group
        for j in range(packed.shape[1]):
            byte = np.int32(packed[k, _U(j)])
            low = ((byte & 15) ^ 8) - 8  # sign-extends the nibble
            high = ((byte >> 4) ^ 8) - 8
            out[k, _U(2 * j)] = np.float32(low) * scales[index, _U(2 * j)]
            out[k, _U(2 * j + 1)] = np.float32(high) * scales[index, _U(2 * j + 1)]
