"""Round-to-nearest: a weight on disk becomes packed codes and float16 scales.

``absmax`` maps the largest weight of a group to the largest code. ``mse`` searches the scale of
least squared error around and below it. Scales are rounded to float16, as stored, before the codes
are computed, so that codes are the best for the scale an engine reads. Scales are positive: with
negative ones, too, the squared error would be a tenth smaller, but TensorRT's parser refuses them
("Scale coefficients must all be positive").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    strips = _Strips(tensor, scheme, scale_exponent, base_scales, advance)
    with ThreadPoolExecutor(threads, thread_name_prefix="edgekit-quantize") as pool:
        errors = list(pool.map(strips.quantize, range(0, tensor.shape[0], STRIP_ROWS)))
    return strips.result(errors)


class _Strips:
    """A weight on its way, quantized a strip of rows at a time; see :func:`quantize_weight`."""

    def __init__(
        self,
        tensor: LazyTensor,
        scheme: QuantScheme,
        exponent: int,
        base: npt.NDArray[np.float32] | None,
        advance: Callable[[int], None] | None,
    ) -> None:
        self._tensor = tensor
        self._scheme = scheme
        self._exponent = exponent
        self._base = base
        self._advance = advance
        self._rows, self._columns = _check_shape(tensor, scheme)
        self._words = np.empty((self._columns, -(-self._rows * scheme.bits // 32)), np.uint32)
        self._scales = np.empty((scheme.groups(self._columns), self._rows), np.float16)

    def quantize(self, start: int) -> tuple[float, float, float]:
        """Quantize the strip that begins at row ``start``.

        Returns:
            Squared error, squared weight, largest absolute error.
        """
        from edgekit.quant import kernels  # noqa: PLC0415 - Numba takes half a second to import

        stop, bits = min(start + STRIP_ROWS, self._rows), self._scheme.bits
        source, shift = kernels.as_bits(_raw_rows(self._tensor, start, stop))
        effective = self._choose_scales(source, shift, start)
        low, high = _code_range(self._scheme)
        codes = np.empty((-(-(stop - start) * bits // 32), self._columns), np.uint32)
        error: tuple[float, float, float] = kernels.encode(
            source, shift, low, high, effective, bits, kernels.ERROR_LANES, codes
        )
        first = start * bits // 32
        tile = np.empty((kernels.TILE_CHANNELS, len(codes)), np.uint32)
        kernels.transpose_words(codes, tile, self._words[:, first : first + len(codes)])
        if self._advance is not None:
            bytes_per_row = self._tensor.stored_bytes / self._rows
            self._advance(round(bytes_per_row * stop) - round(bytes_per_row * start))
        return error

    def _choose_scales(
        self, source: npt.NDArray[Any], shift: np.uint32, start: int
    ) -> npt.NDArray[np.float32]:
        """Store the scales of a strip; return them as an engine reads them, float32 [rows, G]."""
        from edgekit.quant import kernels  # noqa: PLC0415 - see above

        name, exponent, stop = self._tensor.name, self._exponent, start + len(source)
        low, high = _code_range(self._scheme)
        peaks = np.empty((len(source), len(self._scales)), np.uint32)
        bad = kernels.find_peaks(source, shift, peaks)
        if bad >= 0:
            raise CheckpointError(
                f"{name} holds NaN or infinity, first in row {start + bad}",
                "The checkpoint is damaged: download it again",
            )
        wanted = peaks.view(np.float32)
        wanted /= high
        if self._scheme.scale_search == "mse":
            factors = np.array(MSE_FACTORS[self._scheme.bits], np.float32)
            kernels.search_scales(
                source, shift, low, high, factors,
                kernels.SEARCH_CHANNELS, kernels.SEARCH_LANES, wanted,
            )  # fmt: skip
        stored = to_float16_scales(name, wanted, exponent)
        effective = read_scales(stored, exponent)
        if self._base is not None:
            kept = _storable(self._base[start:stop], exponent)
            kernels.keep_scales(
                source, shift, low, high, kept, BASE_ERROR_GROWTH, KEEP_LANES, effective
            )
            stored = to_float16_scales(name, effective, exponent)
        self._scales[:, start:stop] = stored.T
        return effective

    def result(self, errors: Sequence[tuple[float, float, float]]) -> QuantizedWeight:
        """Return the whole weight, once every strip is done, with their errors in order."""
        squared_error, squared_weight, max_abs_error = zip(*errors, strict=True)
        # Strips are fixed and math.fsum is exact: the totals do not depend on the threads.
        error = WeightError(math.fsum(squared_error), math.fsum(squared_weight), max(max_abs_error))
        packed = _packed(self._words, self._rows, self._scheme.bits)
        return QuantizedWeight(self._scheme, self._columns, self._rows, packed, self._scales, error)


def _code_range(scheme: QuantScheme) -> tuple[np.float32, np.float32]:
    """Return the smallest and the largest code, as the kernels want them."""
    low, high = CODE_RANGE[scheme.bits]
    return np.float32(low), np.float32(high)


def _storable(base: npt.NDArray[np.float32], exponent: int) -> npt.NDArray[np.float32]:
    """Return the scales of a base with the bits that can be stored under ``exponent``.

    The base may have stored them under another one. Those that overflow or vanish here are infinite
    or 0, and not kept: errors are compared.
    """
    with np.errstate(over="ignore"):
        return read_scales((base * np.float32(2.0**exponent)).astype(np.float16), exponent)


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
