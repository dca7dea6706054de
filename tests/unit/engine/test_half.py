"""float16 to float32 by bits."""

from __future__ import annotations

import numpy as np

from edgekit.engine.half import to_float32


def test_every_finite_float16_is_exact() -> None:
    """All 63 488 of them, subnormals and both zeros too."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(4, -1)
    wide = to_float32(finite)
    assert wide.dtype == np.dtype(np.float32)
    assert wide.shape == finite.shape
    np.testing.assert_array_equal(wide.view(np.uint32), finite.astype(np.float32).view(np.uint32))


def test_what_is_not_finite_stays_so() -> None:
    """An infinity, and a NaN of either sign, is what it was, its neighbours too."""
    for odd in (np.inf, -np.inf, np.nan, -np.nan):
        values = np.array([1.5, odd, -65504], np.float16)
        np.testing.assert_array_equal(to_float32(values), values.astype(np.float32))


def test_float32_is_copied() -> None:
    """A step's logits are overwritten by the next: what is given out is never a view of them."""
    for dtype in (np.float16, np.float32):
        values = np.ones(3, dtype)
        wide = to_float32(values)
        values[:] = 2
        np.testing.assert_array_equal(wide, np.ones(3, np.float32))
    assert to_float32(np.zeros(0, np.float16)).size == 0
