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
from edgekit.quant.packing import dequantize, unpack_weight
from edgekit.quant.rtn import CODE_RANGE, MSE_FACTORS, quantize_rows, quantize_weight
from edgekit.quant.scheme import QuantScheme, ScaleSearch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MemoryTensor:
    """A weight in memory, as bf16 bits or float32."""

    array: Array
    name: str = "test.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

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
    absmax = np.abs(groups).max(-1) / np.float32(high)

    def encode(scale: Array) -> Array:
        inverse = np.float32(1) / scale
        return np.clip(np.rint(groups * inverse[..., None]), low, high)

    def parts_sum(terms: Array) -> Array:
        """Sum parts of 128 channels in float32, the parts in float64."""
        starts = range(0, terms.shape[-1], 128)
        parts = [sequential(terms[..., i : i + 128]).astype(np.float64) for i in starts]
        return np.asarray(sum(parts))

    dot, norm = np.zeros(absmax.shape), np.zeros(absmax.shape)
    for step, factor in enumerate(MSE_FACTORS[scheme.bits]):
        q = encode(np.maximum(absmax * np.float32(factor), np.float32(2.0**-60)))
        d, n = parts_sum(groups * q), parts_sum(q * q)
        better = (d * d * norm > dot * dot * n) | (step == 0)
        dot, norm = np.where(better, d, dot), np.where(better, n, norm)
    searched = (dot / np.where(norm > 0, norm, 1)).astype(np.float32)
    found = searched if scheme.scale_search == "mse" else absmax
    scale = np.maximum(found, np.float32(2.0**-24)).astype(np.float16).astype(np.float32)
    return encode(scale).reshape(rows, columns).astype(np.int8), scale


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


@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (3, 100), (130, 300)])
@pytest.mark.parametrize("search", ["absmax", "mse"])
def test_channels_of_any_length(rows: int, columns: int, search: ScaleSearch) -> None:
    """Rows that do not fill a word or a strip, and channels that fill no block, are exact, too."""
    scheme = QuantScheme(8, 0, search)
    tensor = MemoryTensor(weight(rows, columns))
    codes, scales = plain_reference(tensor.array, scheme)
    result = quantize_weight(tensor, scheme)
    assert result.packed.shape == (columns, rows)
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
@settings(max_examples=25)
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


@pytest.mark.parametrize("exponent", [-12, 0, 3])
@pytest.mark.parametrize("search", ["absmax", "mse"])
def test_codes_are_nearest_for_the_stored_scale(exponent: int, search: ScaleSearch) -> None:
    """Where stored scales are subnormal float16, codes are the nearest for those very scales."""
    values = weight(8, 64) * np.float32(0.01)
    result = quantize_weight(
        MemoryTensor(values), QuantScheme(4, 32, search), scale_exponent=exponent
    )
    if exponent < 0:
        assert (result.scales < np.finfo(np.float16).tiny).all()
    scale = np.ldexp(result.scales.T.astype(np.float32), -exponent)
    step = np.repeat(scale, 32, axis=1)
    codes = np.clip(np.rint(values / step), -8, 7)
    np.testing.assert_array_equal(unpack_weight(result), codes)
    squared = float(np.square(values - codes * step).sum())
    assert result.error.squared_error == pytest.approx(squared, rel=1e-5)


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
        ((0, 64), QuantScheme(4, 64), r"not \[N, K\]"),
    ],
)
def test_shapes_that_do_not_fit(shape: tuple[int, ...], scheme: QuantScheme, message: str) -> None:
    """A weight the scheme cannot hold is refused by name."""
    with pytest.raises(QuantizationError, match=message):
        quantize_weight(MemoryTensor(np.zeros(shape, np.float32)), scheme)


@pytest.mark.parametrize("size", [1e7, 1e30, 3e38])
@pytest.mark.parametrize("search", ["absmax", "mse"])
def test_scales_beyond_float16(size: float, search: ScaleSearch) -> None:
    """Weights whose scales overflow float16 are refused, even where their squares overflow."""
    tensor = MemoryTensor(np.full((2, 64), size, np.float32))
    with pytest.raises(QuantizationError, match=r"test\.weight has weights too large for float16"):
        quantize_weight(tensor, QuantScheme(4, 64, search))


def test_progress_adds_up_to_the_stored_bytes() -> None:
    """The steps told to ``advance`` sum to the tensor's bytes exactly."""
    told: list[int] = []
    tensor = MemoryTensor(weight(300, 96))
    quantize_weight(tensor, QuantScheme(4, 32), advance=told.append)
    assert len(told) == 2
    assert sum(told) == tensor.stored_bytes


@pytest.mark.parametrize("stored_as", ["bf16", "float32"])
def test_base_scales_are_kept_where_they_cost_nothing(stored_as: str) -> None:
    """Each group takes the base's scale exactly when its squared error grows by 2 % at most."""
    scheme = QuantScheme(4, 32, "mse")
    values = weight(64, 128)
    array = to_bf16(values) if stored_as == "bf16" else values
    plain = quantize_weight(MemoryTensor(array), scheme)
    own = plain.scales.T.astype(np.float32)
    base = (own * np.linspace(0.93, 1.07, own.size).reshape(own.shape)).astype(np.float16)
    based = quantize_weight(MemoryTensor(array), scheme, base_scales=base.astype(np.float32))
    exact = MemoryTensor(array).rows(0, 64).reshape(64, 4, 32).astype(np.float64)

    def errors(scales: Array) -> Array:
        step = scales.astype(np.float64)[..., None]
        result: Array = np.square(exact - np.clip(np.rint(exact / step), -8, 7) * step).sum(-1)
        return result

    expected = np.where(errors(base) <= 1.02 * errors(own), base, plain.scales.T)
    assert (expected == based.scales.T).mean() > 0.99  # ties of float32 sums aside
    assert 0.1 < (base == based.scales.T).mean() < 0.9
    assert based.error.squared_error <= 1.02 * plain.error.squared_error


@pytest.mark.parametrize("exponent", [0, 3])
def test_wrong_base_scales_are_not_taken(exponent: int) -> None:
    """Zero, negative, infinite and overflowing scales of a base are never better."""
    tensor, scheme = MemoryTensor(weight(64, 64)), QuantScheme(4, 32, "mse")
    plain = quantize_weight(tensor, scheme, scale_exponent=exponent)
    for value in (0.0, -1.0, 6e4, np.inf, np.nan):
        base = np.full((64, 2), value, np.float32)
        based = quantize_weight(tensor, scheme, scale_exponent=exponent, base_scales=base)
        np.testing.assert_array_equal(based.scales, plain.scales)


def test_base_scales_are_kept_as_they_are_stored_now() -> None:
    """Scales of a base that lose bits under this version's exponent are judged without them."""
    values = weight(64, 64) * np.float32(0.01)
    scheme = QuantScheme(4, 32, "mse")
    base = quantize_weight(MemoryTensor(values), scheme).scales.T.astype(np.float32)
    result = quantize_weight(MemoryTensor(values), scheme, scale_exponent=-9, base_scales=base)
    step = np.repeat(np.ldexp(result.scales.T.astype(np.float32), 9), 32, axis=1)
    codes = np.clip(np.rint(values / step), -8, 7)
    np.testing.assert_array_equal(unpack_weight(result), codes)
    squared = float(np.square(values - codes * step).sum())
    assert result.error.squared_error == pytest.approx(squared, rel=1e-5)


@pytest.mark.parametrize("exponent", [0, -9])
def test_rows_are_nearest_for_the_stored_scale(exponent: int) -> None:
    """Int8 rows, tiny and zero ones too, are within half a step of the scale as it is stored."""
    rows = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    rows *= np.array([[1.0], [1e-3], [1e-5], [0.0], [100.0]], np.float32)
    codes, scales = quantize_rows("rows", rows, exponent=exponent)
    step = np.ldexp(scales.astype(np.float32), -exponent)
    assert (scales > 0).all()
    # A scale that loses precision in float16's subnormal range may clip the largest values.
    clipped = np.abs(rows) > 127 * step
    assert (np.abs(codes * step - rows) <= step * 0.51)[~clipped].all()
    assert not clipped[[0, 1, 3, 4]].any()
