"""Codes to bytes and back, in the layouts that are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import QuantizationError
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import QuantizedWeight, WeightError

FLOAT16_MAX = 65504.0
SMALLEST_SCALE = 2.0**-24
"""Smallest positive float16, subnormal. TensorRT's parser refuses a scale of 0."""


def pack_int4(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack signed 4-bit codes two per byte, low nibble first.

    Source: ONNX "Int4 types": element 2i in bits 0-3 of byte i, two's complement.

    Args:
        codes: [..., N] int8 in [-8, 7]; N even.

    Returns:
        [..., N // 2] uint8.

    Raises:
        QuantizationError: N is odd, or a code is outside [-8, 7].
    """
    if codes.shape[-1] % 2:
        raise QuantizationError(f"cannot pack an odd number of codes ({codes.shape[-1]})")
    if codes.size and (codes.min() < -8 or codes.max() > 7):
        raise QuantizationError("a 4-bit code is outside [-8, 7]")
    nibbles = codes.view(np.uint8) & 15
    return np.asarray(nibbles[..., 0::2] | (nibbles[..., 1::2] << 4), np.uint8)


def unpack_int4(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return the codes :func:`pack_int4` packed, int8 [..., 2 * bytes]."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.int8)
    # Shifting a nibble to the top and back extends its sign.
    codes[..., 0::2] = (packed << 4).view(np.int8) >> 4
    codes[..., 1::2] = packed.view(np.int8) >> 4
    return codes


def unpack_weight(weight: QuantizedWeight) -> npt.NDArray[np.int8]:
    """Return a quantized weight's codes, int8 [N, K] as in the checkpoint."""
    stored: Any = weight.packed
    codes = unpack_int4(stored) if weight.scheme.bits == 4 else stored
    return np.ascontiguousarray(codes.T)


def dequantize(weight: QuantizedWeight) -> npt.NDArray[np.float32]:
    """Return the weight an engine computes with, float32 [N, K]."""
    codes = unpack_weight(weight).astype(np.float32)
    group = weight.scheme.group_size or weight.in_features
    return codes * np.repeat(weight.scales.T.astype(np.float32), group, axis=1)


def pack_codes(
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.floating[Any]],
    scheme: QuantScheme,
    original: npt.NDArray[np.float32] | None = None,
    scale_exponent: int = 0,
    name: str = "the weight",
) -> QuantizedWeight:
    """Store codes that an algorithm other than round-to-nearest chose.

    Args:
        codes: int8 [N, K].
        scales: [N, K // group_size], positive; 0 where all codes of a group are 0. Bits that
            float16 does not hold of them, once multiplied, are rounded away.
        scheme: Their scheme.
        original: float32 [N, K], for the error statistics; zeros when None.
        scale_exponent: Multiply the stored scales by ``2**scale_exponent``; errors are those of the
            weight before that.
        name: What to call the weight in errors.

    Raises:
        QuantizationError: A shape, a code or a scale does not fit the scheme.
    """
    rows, columns = codes.shape
    group = scheme.group_size or columns
    if scales.shape != (rows, columns // group) or columns % group:
        raise QuantizationError(
            f"{name} has codes {list(codes.shape)} and scales {list(scales.shape)}, "
            f"not one scale per group of {group}"
        )
    stored = to_float16_scales(name, scales.astype(np.float32), scale_exponent)
    transposed = np.ascontiguousarray(codes.T)
    packed = pack_int4(transposed) if scheme.bits == 4 else transposed
    error = WeightError(0.0, 0.0, 0.0)
    if original is not None:
        effective = read_scales(stored, scale_exponent)
        error = _distance(codes.astype(np.float32) * np.repeat(effective, group, axis=1), original)
    return QuantizedWeight(scheme, columns, rows, packed, np.ascontiguousarray(stored.T), error)


def _distance(values: npt.NDArray[np.float32], original: npt.NDArray[np.float32]) -> WeightError:
    difference = values - original
    return WeightError(
        float(np.square(difference, dtype=np.float64).sum()),
        float(np.square(original, dtype=np.float64).sum()),
        float(np.abs(difference).max()),
    )


def to_float16_scales(
    name: str, scales: npt.NDArray[np.float32], exponent: int
) -> npt.NDArray[np.float16]:
    """Return ``scales * 2**exponent`` as it is stored: float16, half to even, never 0.

    Args:
        name: Of the tensor, for the error.
        scales: float32, any shape.
        exponent: Usually 0.

    Raises:
        QuantizationError: A scale is negative, not a number, or overflows float16.
    """
    if not scales.min(initial=0.0) >= 0:
        raise QuantizationError(f"{name} has a scale that is negative or not a number")
    with np.errstate(over="ignore"):  # infinity is refused below
        shifted = scales * np.float32(2.0**exponent)  # exact, and faster than ldexp
    if not shifted.max(initial=0.0) <= FLOAT16_MAX:
        raise QuantizationError(
            f"{name} has weights too large for float16 scales",
            "The checkpoint is damaged, or was not trained for 16 bits: rescale the tensor",
        )
    stored: npt.NDArray[np.float16] = np.maximum(shifted, np.float32(SMALLEST_SCALE)).astype("f2")
    return stored


def read_scales(stored: npt.NDArray[np.float16], exponent: int) -> npt.NDArray[np.float32]:
    """Return stored scales without their power of two: what codes have to be chosen for."""
    return stored.astype(np.float32) * np.float32(2.0**-exponent)
