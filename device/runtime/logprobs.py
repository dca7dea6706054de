"""Log probabilities of chosen tokens and of those that were likeliest in their place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class TokenLogprob(NamedTuple):
    """A chosen token.

    Attributes:
        token: Its id.
        logprob: Natural logarithm of its probability under the model, before temperature,
            penalties and grammar.
        top: The likeliest tokens in its place and their logprobs, likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprob(logits: npt.NDArray[np.float32], token: int, count: int) -> TokenLogprob:
    """Return what is told of a token.

    Args:
        logits: float32 [V], finite.
        token: Which was chosen.
        count: How many likeliest tokens are told; of equal ones the lower id goes first.
    """
    best = float(logits.max())
    total = best + float(np.log(np.sum(np.exp(logits - np.float32(best)), dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if count:
        edge = np.partition(logits, len(logits) - count)[len(logits) - count]
        likely = np.flatnonzero(logits >= edge)
        order = likely[np.argsort(-logits[likely], kind="stable")][:count]
        top = tuple((int(index), float(logits[index]) - total) for index in order)
    return TokenLogprob(token, float(logits[token]) - total, top)
