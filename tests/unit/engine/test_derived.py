"""Weights made at load: layouts of MatMulNBits, joined vectors, longer tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.contracts import derived
from edgekit.contracts.derived import DerivedTensor, derived_bytes, derived_path, parse_derived
from edgekit.engine.derived import make_tensor, nbits_codes, nbits_scales
from edgekit.engine.ort_options import cuda_options
from edgekit.errors import BundleError
from edgekit.quant.packing import pack_int4

Array = np.ndarray[Any, Any]


def stored(codes: Array, bits: int) -> Array:
    """Return codes [K, N] as a blob has them."""
    return pack_int4(codes) if bits == 4 else codes


def unpacked(made: Array, bits: int) -> Array:
    """Return signed codes [N, K] of what MatMulNBits reads, by its documentation."""
    flat = made.reshape(len(made), -1)
    if bits == 8:
        return flat.astype(np.int64) - 128
    result = np.empty((len(flat), 2 * flat.shape[1]), np.int64)
    result[:, 0::2], result[:, 1::2] = flat & 15, flat >> 4
    return result - 8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("channels", "widths", "block"), [(64, (6, 2, 4), 32), (600, (530, 4), 16), (40, (8,), 16)]
)
def test_codes_are_joined_and_transposed(
    bits: int, channels: int, widths: tuple[int, ...], block: int
) -> None:
    """Linears stand one behind the other, tiles or not; what a last block lacks is zero."""
    rng, low = np.random.default_rng(bits), -(2 ** (bits - 1))
    codes = [rng.integers(low, -low, (channels, n)).astype(np.int8) for n in widths]
    blocks = -(-channels // block)
    shape = (sum(widths), blocks, block * bits // 8)
    made = nbits_codes([stored(c, bits) for c in codes], [f"int{bits}"] * len(codes), shape)
    assert made.shape == shape
    assert made.dtype == np.uint8
    found = unpacked(made, bits)
    np.testing.assert_array_equal(found[:, :channels], np.concatenate(codes, 1).T)
    assert not found[:, channels:].any()


@pytest.mark.parametrize(
    ("dtypes", "shape"),
    [
        (["int8", "int4"], (8, 2, 32)),
        (["float16"] * 2, (8, 2, 32)),
        (["int8"] * 2, (8, 3, 32)),
        (["int8"] * 2, (9, 2, 32)),
        (["int8"] * 2, (8, 64)),
    ],
)
def test_codes_that_do_not_give_the_shape_are_refused(
    dtypes: list[str], shape: tuple[int, ...]
) -> None:
    """Other types, other widths and whole blocks too many are errors."""
    codes = np.zeros((64, 4), np.int8)
    with pytest.raises(ValueError, match="make"):
        nbits_codes([codes, codes], dtypes, shape)


def test_scales_are_repeated_for_smaller_blocks() -> None:
    """Each block of a group, and of a channel, has its scale."""
    first, second = np.array([[1, 2], [3, 4]], np.float16), np.array([[5], [6]], np.float16)
    assert nbits_scales([first, second], 2).tolist() == [[1, 3], [2, 4], [5, 6]]
    assert nbits_scales([second], 4).tolist() == [[5, 5, 6, 6]]
    assert nbits_scales([first[:1]], 3).tolist() == [[1, 1, 1], [2, 2, 2]]
    with pytest.raises(ValueError, match="2 groups do not make 3 blocks"):
        nbits_scales([first], 3)


def test_vectors_are_joined_and_tables_lengthened() -> None:
    """Both come out in the wanted type; another length is an error."""
    parts = [np.array([1, 2], np.float16), np.array([3], np.float16)]
    joined = DerivedTensor("b", derived.JOIN, "float32", (3,), ("x", "y"))
    made = make_tensor(joined, parts, ["float16"] * 2)
    assert made.dtype == np.float32
    assert made.tolist() == [1, 2, 3]
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    longer = DerivedTensor("t", derived.ROWS, "float16", (5, 2), ("z",))
    assert make_tensor(longer, [table], ["float32"])[2:].tolist() == [[4, 5]] * 3
    with pytest.raises(ValueError, match=r"give \[3\], not \[3, 1\]"):
        make_tensor(DerivedTensor("b", derived.JOIN, "float32", (3, 1), ("x",)), parts, ["float16"])


def test_a_list_reads_back_and_wrong_ones_are_refused() -> None:
    """Canonical and sorted; unknown kinds and missing sources are named."""
    rows = [
        DerivedTensor("b", derived.JOIN, "float32", (3,), ("x", "y")),
        DerivedTensor("a", derived.CODES, "uint8", (2, 1, 16), ("z",)),
    ]
    data = derived_bytes(rows)
    assert parse_derived(data, "list") == tuple(sorted(rows, key=lambda row: row.name))
    assert derived_path("ort.float16.onnx") == "ort.float16.weights.json"
    for old, new, message in (
        (b'"join"', b'"shuffle"', "list: b: kind is 'shuffle'"),
        (b'["z"]', b"[]", "list: a has no list of sources"),
        (b'["z"]', b"[3]", "list: a has no list of sources"),
        (b'"derived"', b'"others"', "list: derived is not a list"),
    ):
        with pytest.raises(BundleError, match=message):
            parse_derived(data.replace(old, new), "list")


def test_older_cuda_norms_are_held_to_float32() -> None:
    """Before they summed in float32 by themselves, strict mode makes them."""
    strict = "enable_skip_layer_norm_strict_mode"
    assert cuda_options("1.24.2", cuda_graph=False) == {strict: "1"}
    assert cuda_options("1.31.1", cuda_graph=True) == {"enable_cuda_graph": "1"}
