"""Round-to-nearest: exact against a plain NumPy reference, bounded, and independent of threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from factories import to_bf16
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.checkpoint.decode import bf16_to_float32
from edgekit.errors import CheckpointError, QuantizationError
from edgekit.quant.packing import dequantize, pack_codes, pack_int4, unpack_int4, unpack_weight
from edgekit.quant.rtn import CODE_RANGE, MSE_FACTORS, MSE_REFINEMENTS, quantize_weight
from edgekit.quant.scheme import QuantScheme

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MemoryTensor:
    """A weight in memory, as bf16 bits or float32."""

    array: Array
    name: str = "test.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def stored_bytes(self) -> int:
        return self.array.nbytes

    def rows(self, start: int, stop: int) -> Array:
        part = self.array[start:stop]
        return bf16_to_float32(part) if part.dtype == np.uint16 else part

    def bf16_rows(self, start: int, stop: int) -> Array | None:
        return self.array[start:stop] if self.array.dtype == np.uint16 else None


def weight(rows: int, columns: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    values: Array = (rng.standard_normal((rows, columns)) * 0.05).astype(np.float32)
    return values


def sequential(values: Array) -> Array:
    """Sum over the last axis in order, in float32, as the kernel does per lane."""
    total = np.zeros(values.shape[:-1], np.float32)
    for k in range(values.shape[-1]):
        total = total + values[..., k]
    return total


def plain_reference(values: Array, scheme: QuantScheme) -> tuple[Array, Array]:
    """Return codes [N, K] and scales [N, G] by the documented algorithm, slowly."""
    rows, columns = values.shape
    low, high = CODE_RANGE[scheme.bits]
    groups = values.reshape(rows, scheme.groups(columns), -1)
    amax = np.abs(groups).max(-1)

    def stored(scale: Array) -> Array:
        return np.maximum(scale, np.float32(2.0**-14)).astype(np.float16).astype(np.float32)

    def encode(scale: Array) -> Array:
        inverse = np.float32(1) / scale
        return np.clip(np.rint(groups * inverse[..., None]), low, high)

    def error(scale: Array) -> Array:
        return sequential(np.square(groups - encode(scale) * scale[..., None]))

    factors = MSE_FACTORS if scheme.scale_search == "mse" else (1.0,)
    best, least = np.zeros_like(amax), np.full_like(amax, np.inf)
    trials = [stored(amax / np.float32(high) * np.float32(f)) for f in factors]
    for step in range(len(trials) + (MSE_REFINEMENTS if scheme.scale_search == "mse" else 0)):
        if step < len(trials):
            scale = trials[step]
        else:
            q = encode(best)
            norm = sequential(q * q)
            fitted = sequential(groups * q) / np.where(norm > 0, norm, 1)
            scale = stored(np.where(norm > 0, fitted, best).astype(np.float32))
        found = error(scale)
        better = found < least
        best, least = np.where(better, scale, best), np.where(better, found, least)
    return encode(best).reshape(rows, columns).astype(np.int8), best


SCHEMES = [
    QuantScheme(4, 128, "absmax"),
    QuantScheme(4, 64, "mse"),
    QuantScheme(4, 32, "mse"),
    QuantScheme(8, 0, "absmax"),
    QuantScheme(8, 128, "mse"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.label}-{s.scale_search}")
@pytest.mark.parametrize("stored", ["bf16", "f32"])
def test_kernel_equals_plain_numpy(scheme: QuantScheme, stored: str) -> None:
    """Codes and scales are bit for bit those of the slow reference, for ragged lane blocks too."""
    values = weight(150, 256)
    array = to_bf16(values) if stored == "bf16" else values
    tensor = MemoryTensor(array)
    codes, scales = plain_reference(tensor.rows(0, 150), scheme)
    result = quantize_weight(tensor, scheme)
    np.testing.assert_array_equal(unpack_weight(result), codes)
    np.testing.assert_array_equal(result.scales.T.astype(np.float32), scales)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.label}-{s.scale_search}")
def test_threads_do_not_change_the_bytes(scheme: QuantScheme) -> None:
    """One thread and three give the same bytes and the same error statistics."""
    tensor = MemoryTensor(weight(400, 256))
    one, three = (quantize_weight(tensor, scheme, threads=n) for n in (1, 3))
    assert one.packed.tobytes() == three.packed.tobytes()
    assert one.scales.tobytes() == three.scales.tobytes()
    assert one.error == three.error


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-9, 1e-3, 1.0, 300.0]))
@settings(max_examples=25, deadline=None)
def test_error_is_within_half_a_step(seed: int, size: float) -> None:
    """With absmax scales no weight moves by more than half a step, float16 rounding allowed."""
    values = weight(8, 64, seed) * np.float32(size)
    result = quantize_weight(MemoryTensor(values), QuantScheme(4, 32, "absmax"))
    step = np.repeat(result.scales.T.astype(np.float32), 32, axis=1)
    difference = np.abs(dequantize(result) - values)
    assert (difference <= 0.5 * step * 1.01 + 1e-12).all()
    assert result.error.max_abs_error == pytest.approx(float(difference.max()))
    assert result.error.squared_error == pytest.approx(float(np.square(difference).sum()), rel=1e-4)


def test_searched_scales_err_less() -> None:
    """Searched scales have less squared error than absmax, and smaller groups less still."""
    tensor = MemoryTensor(weight(64, 512))
    schemes = [QuantScheme(4, 128, "absmax"), *(QuantScheme(4, g, "mse") for g in (128, 64, 32))]
    errors = [quantize_weight(tensor, scheme).error.squared_error for scheme in schemes]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.8 * errors[0]


def test_scale_exponent_moves_scales_only() -> None:
    """An exponent multiplies the stored scales and leaves codes and statistics alone."""
    tensor = MemoryTensor(weight(32, 64))
    plain = quantize_weight(tensor, QuantScheme(4, 64))
    shifted = quantize_weight(tensor, QuantScheme(4, 64), scale_exponent=-3)
    assert plain.packed.tobytes() == shifted.packed.tobytes()
    np.testing.assert_array_equal(shifted.scales * np.float16(8), plain.scales)
    assert plain.error == shifted.error


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_named(bad: float) -> None:
    """NaN and infinity are refused with the tensor's name and the row."""
    values = weight(300, 64)
    values[211, 5] = bad
    with pytest.raises(CheckpointError, match=r"test\.weight holds NaN or infinity.*row 211"):
        quantize_weight(MemoryTensor(values), QuantScheme(4, 64))


def test_zero_weights_stay_zero() -> None:
    """A group of zeros gets a usable scale and zero codes."""
    result = quantize_weight(MemoryTensor(np.zeros((4, 64), np.float32)), QuantScheme(4, 64))
    assert not dequantize(result).any()
    assert (result.scales > 0).all()


@pytest.mark.parametrize(
    ("shape", "scheme", "message"),
    [
        ((4, 100), QuantScheme(4, 64), "not a multiple of group size 64"),
        ((5, 64), QuantScheme(4, 64), "odd number of output channels"),
        ((64,), QuantScheme(4, 64), r"not \[N, K\]"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], scheme: QuantScheme, message: str) -> None:
    """A weight the scheme cannot hold is refused by name."""
    with pytest.raises(QuantizationError, match=message):
        quantize_weight(MemoryTensor(np.zeros(shape, np.float32)), scheme)


def test_scales_beyond_float16() -> None:
    """Weights whose scales overflow float16 are refused, not stored as infinity."""
    with pytest.raises(QuantizationError, match="too large for float16"):
        quantize_weight(MemoryTensor(np.full((2, 64), 1e7, np.float32)), QuantScheme(4, 64))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 20))
@settings(deadline=None)
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
    original = codes * np.repeat(scales.astype(np.float32), 32, axis=1)
    packed = pack_codes(codes, scales, QuantScheme(4, 32), original)
    np.testing.assert_array_equal(unpack_weight(packed), codes)
    assert packed.error.squared_error == 0
