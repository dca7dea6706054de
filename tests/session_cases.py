"""What the tests of sessions compare with: a random sequence, and the reference's logits of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.evaluate.reference import ReferenceModel


def random_tokens(count: int) -> list[int]:
    """Return token ids below 4096, the same for every call."""
    ids: list[int] = np.random.default_rng(5).integers(0, 4096, count).tolist()
    return ids


def reference_logits(folder: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Return float32 logits [S, V] of the whole sequence from the NumPy reference."""
    checkpoint = open_checkpoint(folder)
    model = ReferenceModel(checkpoint.config, checkpoint.tensor)
    return np.asarray(model.logits([np.array(tokens, np.int64)])[0])
