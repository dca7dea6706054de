"""These tests need torch (extra ``calibrate``)."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny products gain nothing from threads and lose much to a busy machine."""
    torch.set_num_threads(1)
