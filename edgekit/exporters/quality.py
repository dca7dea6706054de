"""Judging a requantized graph by the exported one, on the golden sequences.

Both run in ONNX Runtime as they are written (float32, no fused kernels), one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.engine.growing_cache import GrowingCacheSession
from edgekit.errors import CheckpointError
from edgekit.evaluate.divergence import compare_logits
from edgekit.evaluate.golden import golden_from_scores
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.evaluate.scores import score_logits
from edgekit.evaluate.text_quality import summarize

Float32Array = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


def run_windows(session: GrowingCacheSession, windows: Sequence[Tokens]) -> list[Float32Array]:
    """Return a graph's logits of every window, float32 [S, V] each.

    Raises:
        CheckpointError: A token is not in the vocabulary.
        EngineError: The graph fails.
    """
    largest = max(int(window.max()) for window in windows)
    if largest >= session.vocab_size:
        raise CheckpointError(
            f"the tokenizer gives token {largest}, the model has {session.vocab_size}",
            "The tokenizer and the weights are not of one model",
        )
    return [session.prefill(0, window.tolist(), all_logits=True) for window in windows]


def open_exact(path: Path, windows: Sequence[Tokens], vocab_size: int) -> GrowingCacheSession:
    """Open a graph to run the windows as it is written.

    One thread: what is recorded of it must not depend on how many a build has.
    """
    longest = max(map(len, windows))
    return GrowingCacheSession(
        path, max_context=longest, vocab_size=vocab_size, threads=1, exact=True
    )


def compare_graphs(
    windows: Sequence[Tokens], exported: Sequence[Float32Array], stored: Sequence[Float32Array]
) -> dict[str, Any]:
    """Return the quality report of a manifest, rounded to six decimals."""
    parts = [
        compare_logits(ours, theirs, np.append(window[1:], -1))
        for window, ours, theirs in zip(windows, exported, stored, strict=True)
    ]
    figures = {name: round(value, 6) for name, value in summarize(parts).to_dict().items()}
    return {**figures, "layers": []}


def record_windows(windows: Sequence[Tokens], logits: Sequence[Float32Array]) -> GoldenSet:
    """Return the golden sequences as a graph scores them."""
    scores = [
        score_logits(rows, np.append(window[1:], -1), top_k=2)
        for window, rows in zip(windows, logits, strict=True)
    ]
    return golden_from_scores(windows, scores)
