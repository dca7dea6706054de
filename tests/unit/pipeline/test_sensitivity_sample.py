"""The tokens on which linears are ranked: few, whatever the windows."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.pipeline.calibrated import SENSITIVITY_TOKENS, sensitivity_sample
from edgekit.quant.calibration import CalibrationSet


@pytest.mark.parametrize(
    ("shape", "taken"),
    [((100, 64), (32, 64)), ((3, 512), (3, 512)), ((9, 1500), (1, 1500)), ((5, 8192), (1, 2048))],
)
def test_no_more_tokens_than_rank(shape: tuple[int, int], taken: tuple[int, int]) -> None:
    """Whole windows are taken from the front as far as they fit; a longer one is cut."""
    windows = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape)
    sample = sensitivity_sample(CalibrationSet(windows, "digest", windows.size))
    assert sample.windows.shape == taken
    assert sample.windows.size <= SENSITIVITY_TOKENS
    np.testing.assert_array_equal(sample.windows, windows[: taken[0], : taken[1]])
