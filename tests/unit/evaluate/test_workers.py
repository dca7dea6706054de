"""Worker threads: all rows once, BLAS held to one thread, errors passed on."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.evaluate.workers import Workers, set_blas_threads


@given(total=st.integers(0, 50), height=st.integers(0, 20), threads=st.integers(1, 4))
def test_every_row_is_done_once(total: int, height: int, threads: int) -> None:
    """Slices cover all rows without overlap, at any height and thread count."""
    done = np.zeros(total, int)

    def work(rows: slice) -> None:
        done[rows] += 1

    with Workers(threads) as workers:
        workers.rows(work, total, height)
    np.testing.assert_array_equal(done, 1)


def test_results_keep_their_order() -> None:
    """Results come in the order of the indices, from several threads."""
    barrier = threading.Barrier(2, timeout=10)
    with Workers(2) as workers:
        assert workers.map(lambda i: (barrier.wait() >= 0, i)[1], 2) == [0, 1]


def test_blas_is_restored() -> None:
    """BLAS has one thread inside, also when entered again, and its own count afterwards."""
    before = set_blas_threads(3)
    assert before is not None, "tests run on NumPy's own wheels, which carry OpenBLAS"
    workers = Workers(2)

    def fail() -> None:
        with workers:
            with workers:
                pass
            assert set_blas_threads(1) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert set_blas_threads(before) == 3


def test_errors_and_warnings_of_threads() -> None:
    """An exception in a thread reaches the caller; an overflow does not warn."""
    with Workers(2) as workers:
        assert workers.map(lambda i: float(np.exp(np.float32(1000 + i))), 2) == [np.inf, np.inf]
        with pytest.raises(ZeroDivisionError):
            workers.map(lambda i: 1 // i, 2)
