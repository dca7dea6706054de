"""Packing: the ONNX layout, round trips, and codes that other algorithms chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import QuantizationError
from edgekit.quant.packing import dequantize, pack_codes, pack_int4, unpack_int4, unpack_weight
from edgekit.quant.scheme import QuantScheme

Array = np.ndarray[Any, Any]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 20))
def test_packing_round_trips(seed: int, rows: int, pairs: int) -> None:
    """Unpacking gives back every code, negative ones included."""
    codes = np.random.default_rng(seed).integers(-8, 8, (rows, 2 * pairs)).astype(np.int8)
    packed = pack_int4(codes)
    assert packed.shape == (rows, pairs)
    np.testing.assert_array_equal(unpack_int4(packed), codes)


def test_packing_layout_is_low_nibble_first() -> None:
    """The first code of a pair is in bits 0 to 3, as ONNX lays int4 out."""
    assert pack_int4(np.array([[1, -1]], np.int8)).tolist() == [[0xF1]]


@pytest.mark.parametrize("codes", [[[1, 2, 3]], [[8, 0]], [[-9, 0]]])
def test_packing_refuses_what_does_not_fit(codes: list[list[int]]) -> None:
    """An odd count and a code outside [-8, 7] are errors."""
    with pytest.raises(QuantizationError):
        pack_int4(np.array(codes, np.int8))


def test_codes_of_other_algorithms_are_stored_as_given() -> None:
    """Codes chosen elsewhere come back unchanged, with their error against the original."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, (6, 64)).astype(np.int8)
    scales = rng.random((6, 2)).astype(np.float16)
    original = codes.astype(np.float32) * np.repeat(scales.astype(np.float32), 32, axis=1)
    packed = pack_codes(codes, scales, QuantScheme(4, 32), original)
    np.testing.assert_array_equal(unpack_weight(packed), codes)
    assert packed.error.squared_error == 0


def test_onnx_reads_the_layout() -> None:
    """The onnx package unpacks an INT4 tensor of our bytes to our codes."""
    import onnx

    codes = np.random.default_rng(2).integers(-8, 8, (6, 10)).astype(np.int8)
    tensor = onnx.TensorProto(
        data_type=onnx.TensorProto.INT4, dims=codes.shape, raw_data=pack_int4(codes).tobytes()
    )
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


@pytest.mark.parametrize("exponent", [-14, 2])
def test_an_exponent_only_moves_the_stored_scales(exponent: int) -> None:
    """Codes stay, scales move by the power of two, errors are those of the unscaled weight."""
    codes = np.ones((2, 32), np.int8)
    scales = np.full((2, 1), 3.0, np.float32)
    original = np.full((2, 32), 3.5, np.float32)
    packed = pack_codes(codes, scales, QuantScheme(4, 32), original, exponent)
    assert packed.scales.tolist() == [[3.0 * 2.0**exponent] * 2]
    assert packed.error.squared_error == 64 * 0.25
    assert packed.error.max_abs_error == 0.5


def test_a_scale_of_zero_is_stored_as_a_positive_one() -> None:
    """Groups of zeros may come with scale 0, which TensorRT refuses: a tiny one is stored."""
    packed = pack_codes(
        np.zeros((2, 32), np.int8), np.zeros((2, 1), np.float16), QuantScheme(4, 32)
    )
    assert (packed.scales > 0).all()
    assert not dequantize(packed).any()


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([[1.0, 1.0]], r"x has codes \[1, 32\] and scales \[1, 2\]"),
        ([[-1.0]], "x has a scale that is negative"),
        ([[np.nan]], "x has a scale that is negative or not a number"),
        ([[1e6]], "x has weights too large for float16 scales"),
    ],
)
def test_scales_that_cannot_be_stored(scales: list[list[float]], message: str) -> None:
    """Scales of the wrong shape, sign or size are refused with the weight's name."""
    with pytest.raises(QuantizationError, match=message):
        pack_codes(np.zeros((1, 32), np.int8), np.array(scales), QuantScheme(8, 32), name="x")
