"""Weights become the float16 that NumPy would make, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.checkpoint.decode import bf16_to_float32
from edgekit.errors import CheckpointError, QuantizationError
from edgekit.quant.float16 import to_float16

ALL_BF16 = np.arange(1 << 16, dtype=np.uint16)


def fitting_bf16(exponent: int) -> npt.NDArray[np.uint16]:
    """Return every bfloat16 that float16 can hold after ``2**exponent``."""
    values = bf16_to_float32(ALL_BF16)
    with np.errstate(over="ignore", invalid="ignore"):
        fits = np.abs(values * np.float32(2.0**exponent)) < np.float32(65520)
    return np.extract(fits, ALL_BF16)


@pytest.mark.parametrize("exponent", [0, -8, 3])
def test_every_bfloat16_is_rounded_as_numpy_does(exponent: int) -> None:
    bits = fitting_bf16(exponent)[None]
    wanted = (bf16_to_float32(bits) * np.float32(2.0**exponent)).astype(np.float16)
    np.testing.assert_array_equal(
        to_float16("w", bits, exponent).view(np.uint16), wanted.view(np.uint16)
    )


def test_float32_is_rounded_to_nearest_even() -> None:
    """Neighbours and midpoints of every float16, normal and subnormal."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    near = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    values = np.concatenate([halves, middles, *near])
    for rows in (values, -values, values[: 60 * (len(values) // 60)].reshape(60, -1)):
        got = to_float16("w", rows, 0)
        np.testing.assert_array_equal(got.view(np.uint16), rows.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("value", [65520.0, -7e4, 3e38])
def test_what_overflows_is_refused(value: float) -> None:
    rows = np.array([[1.0, value]], np.float32)
    with pytest.raises(QuantizationError, match="w has values that float16 cannot hold"):
        to_float16("w", rows, 2)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    rows = np.array([[1.0, value, 1e5]], np.float32)
    with pytest.raises(CheckpointError, match="w holds NaN or infinity"):
        to_float16("w", rows, 0)


def test_the_largest_that_fits_is_kept() -> None:
    largest = np.nextafter(np.float32(65520), np.float32(0))
    assert to_float16("w", np.array([[largest]], np.float32), 0)[0, 0] == 65504
