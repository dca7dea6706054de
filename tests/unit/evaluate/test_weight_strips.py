"""Weights read in strips give what whole weights give, and damage is named."""

from __future__ import annotations

import numpy as np
import pytest
from evaluate_fakes import ArrayTensors
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import CheckpointError
from edgekit.evaluate.weight_strips import WeightStrips
from edgekit.evaluate.workers import Workers
from edgekit.models.config import Linear

WEIGHT = np.random.default_rng(0).standard_normal((67, 12)).astype(np.float32)
LINEAR = Linear("x", 12, 67, bias=True, weight_key="x.weight")


def weights(strip_bytes: int = 1 << 20, threads: int = 1, **arrays: np.ndarray) -> WeightStrips:
    names = {name.replace("__", "."): values for name, values in arrays.items()}
    return WeightStrips(ArrayTensors(names), Workers(threads), strip_bytes=strip_bytes)


@given(
    ids=st.lists(st.integers(0, 66), max_size=40), strip_bytes=st.integers(1, 40 * WEIGHT.nbytes)
)
def test_gather_is_indexing(ids: list[int], strip_bytes: int) -> None:
    """Gathered rows are the indexed rows, in order and with repeats, at any strip size."""
    rows = weights(strip_bytes, e=WEIGHT).gather("e", (67, 12), np.array(ids, np.int64))
    np.testing.assert_array_equal(rows, WEIGHT[ids])


@given(strip_bytes=st.integers(1, 2 * WEIGHT.nbytes), threads=st.integers(1, 3))
def test_linear_is_a_product(strip_bytes: int, threads: int) -> None:
    """A linear in strips is the whole product plus its bias."""
    x = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)
    bias = np.arange(67, dtype=np.float32)
    source = weights(strip_bytes, threads, x__weight=WEIGHT, x__bias=bias)
    np.testing.assert_allclose(source.linear(LINEAR, x), x @ WEIGHT.T + bias, rtol=1e-5, atol=1e-5)


def test_reads_stay_within_a_strip() -> None:
    """No read is larger than the strip, so memory is bounded by it."""
    tensors = ArrayTensors({"e": WEIGHT})
    source = WeightStrips(tensors, Workers(2), strip_bytes=4 * 12 * 5)
    for _ in source.matrix("e", (67, 12)):
        pass
    source.gather("e", (67, 12), np.arange(67))
    assert tensors.opened["e"].largest_read == 5 * 12


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 2])
def test_damage_names_tensor_and_row(bad: float, threads: int) -> None:
    """A NaN or infinity anywhere is an error that names the tensor and the row."""
    damaged = WEIGHT.copy()
    damaged[41, 3] = bad
    source = weights(4 * 12 * 8, threads, x__weight=damaged)
    with pytest.raises(CheckpointError, match=r"x\.weight holds NaN or infinity in row 41"):
        list(source.matrix("x.weight", (67, 12)))


def test_large_finite_weights_are_no_damage() -> None:
    """Finite values whose float32 sum overflows are accepted."""
    large = np.full((4, 4), 3e38, np.float32)
    assert next(weights(x=large).matrix("x", (4, 4)))[1].max() == np.float32(3e38)


def test_wrong_shape_is_refused() -> None:
    """A weight of another shape than config.json asks for is not read."""
    with pytest.raises(CheckpointError, match=r"\[67, 12\].*\[67, 13\]"):
        list(weights(x=WEIGHT).matrix("x", (67, 13)))


@pytest.mark.parametrize("token", [-1, 67])
def test_unknown_token_is_refused(token: int) -> None:
    """An id outside the embedding is an error, not another token's row."""
    with pytest.raises(CheckpointError, match=f"token id {token} is outside"):
        weights(x=WEIGHT).gather("x", (67, 12), np.array([3, token]))
