"""What a sampler is given in place of a whole row of logits: the largest of them, and a sum.

A sampler that can do with a :class:`Candidates` draws the very token it would draw from the row;
where it cannot (the nucleus reaches past the candidates, equal logits at their edge), it asks for
the row, which costs a copy from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class Candidates:
    """The largest logits of one row.

    Attributes:
        tokens: int64 [k], the largest logit's first.
        logits: float32 [k], theirs, exactly.
        edge: No token outside is above it, some may equal it: the least candidate, -inf where the
            candidates are the whole vocabulary.
        total: Sum over the whole vocabulary of exp((logit - largest) / temperature), correct to
            ``sampler.TOTAL_ERROR``; None when it was not asked for.
        row: Returns the whole row, float32 [V]; to be called before the session's next step.
    """

    tokens: npt.NDArray[np.int64]
    logits: Float32Array
    edge: float
    total: float | None
    row: Callable[[], Float32Array]

    def best(self) -> int | None:
        """Return the first of the most likely tokens; None if it may lie outside."""
        largest = self.logits[0]
        if not largest > self.edge:
            return None
        if len(self.logits) == 1 or largest > self.logits[1]:
            return int(self.tokens[0])
        return int(self.tokens[self.logits == largest].min())

    def in_order(self) -> tuple[npt.NDArray[np.int64], Float32Array]:
        """Return the tokens, ascending, and their logits."""
        order = self.tokens.argsort()
        return self.tokens[order], self.logits[order]


Row: TypeAlias = Float32Array | Candidates


def best_of(row: Row) -> int:
    """Return the first of the most likely tokens."""
    best = row.best() if isinstance(row, Candidates) else None
    if best is not None:
        return best
    whole = row.row() if isinstance(row, Candidates) else row
    return int(whole.argmax())
