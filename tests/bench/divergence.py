"""How far one model's next-token distributions are from another's, over the same positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROWS = 256

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Means over all positions of all windows.

    Attributes:
        kl_divergence_nats: Mean of KL(reference || candidate), every position.
        kl_standard_error_nats: Its standard error over windows, which are independent.
        top1_agreement: Share of positions whose best token is the same.
        perplexity: Of the text under the candidate, within windows.
        positions: How many positions the first two are means of.
    """

    kl_divergence_nats: float
    kl_standard_error_nats: float
    top1_agreement: float
    perplexity: float
    positions: int


def compare(
    reference: npt.NDArray[np.float32],
    candidate: npt.NDArray[np.float32],
    windows: npt.NDArray[np.int64],
) -> Divergence:
    """Compare logits [windows, tokens, vocabulary] of two models, in float64.

    The candidate may have a wider vocabulary (padding): the extra columns are dropped.

    Raises:
        ValueError: The candidate's logits are not finite, or of other windows.
    """
    count, length = windows.shape
    if reference.shape[:2] != windows.shape or candidate.shape[:2] != windows.shape:
        msg = f"logits are for {reference.shape[:2]} and {candidate.shape[:2]}, not {windows.shape}"
        raise ValueError(msg)
    kl = np.empty((count, length))
    agree = np.empty((count, length), bool)
    text = np.empty((count, length - 1))
    vocabulary = reference.shape[2]
    for window in range(count):
        for start in range(0, length, ROWS):
            part = slice(start, min(start + ROWS, length))
            p = log_softmax(reference[window, part])
            q = log_softmax(candidate[window, part, :vocabulary])
            kl[window, part] = (np.exp(p) * (p - q)).sum(axis=1)
            agree[window, part] = p.argmax(axis=1) == q.argmax(axis=1)
            wanted = windows[window, part.start + 1 : part.stop + 1]
            rows = np.arange(wanted.size)
            text[window, part.start : part.start + wanted.size] = q[rows, wanted]
    if not np.isfinite(kl).all():
        msg = "the candidate's logits are not finite"
        raise ValueError(msg)
    spread = kl.mean(axis=1).std(ddof=1) / np.sqrt(count) if count > 1 else float("nan")
    return Divergence(
        kl_divergence_nats=float(kl.mean()),
        kl_standard_error_nats=float(spread),
        top1_agreement=float(agree.mean()),
        perplexity=float(np.exp(-text.mean())),
        positions=kl.size,
    )


def log_softmax(logits: npt.NDArray[np.floating]) -> Float64Array:
    """Return log-probabilities in float64 over the last axis."""
    values = np.asarray(logits, np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    result: Float64Array = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return result
