"""Log-probabilities and best tokens from logits that arrive in strips of the vocabulary.

Whole logits of a large vocabulary (152k tokens) are never held: the running maximum and sum of
exponentials of each position are. Sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.evaluate.workers import Workers

BLOCK_ELEMENTS = 1 << 16
"""Logits worked on at a time: 512 kB as float64, which stays in a core's cache."""

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What is known of the next token at P positions.

    Attributes:
        log_probability: Float64 [P], nats, of the wanted token; NaN where none was wanted.
        logsumexp: Float64 [P], of the logits.
        top_ids: Int64 [P, k], best first.
        top_log_probability: Float64 [P, k], nats.
    """

    log_probability: Float64Array
    logsumexp: Float64Array
    top_ids: npt.NDArray[np.int64]
    top_log_probability: Float64Array

    def split(self, edges: npt.NDArray[np.int64]) -> list[TokenScores]:
        """Split the positions before each of ``edges``."""
        columns = (self.log_probability, self.logsumexp, self.top_ids, self.top_log_probability)
        parts = zip(*(np.split(column, edges) for column in columns), strict=True)
        return [TokenScores(*part) for part in parts]


class ScoreAccumulator:
    """Takes logits strip by strip, in order of token id.

    Args:
        wanted: Int64 [P], the token whose log-probability is wanted at each position; -1 none.
        top_k: Best tokens to keep; ties go to the lower id.
    """

    def __init__(self, wanted: npt.NDArray[np.int64], *, top_k: int = 1) -> None:
        self._wanted = np.asarray(wanted, np.int64)
        size = self._wanted.size
        self._wanted_logit = np.full(size, np.nan)
        self._peak = np.full(size, -np.inf)
        self._sum = np.zeros(size)
        self._top_ids = np.full((size, top_k), -1, np.int64)
        self._top = np.full((size, top_k), -np.inf)

    def update(
        self, start: int, logits: npt.NDArray[np.floating], row: int = 0
    ) -> tuple[Float64Array, Float64Array]:
        """Add logits [R, width] of token ids ``start`` onward at positions ``row`` onward.

        Returns:
            ``(weights, rescale)``: float64 [R, width] exponentials of the logits less the
            running peak, and [R] factors that bring earlier sums to that peak.
        """
        part = slice(row, row + logits.shape[0])
        strip = np.asarray(logits, np.float64)
        self._gather(part, start, strip)
        self._merge_top(part, start, strip)
        peak = np.maximum(self._peak[part], strip.max(axis=1))
        weights = np.exp(strip - peak[:, None])
        rescale = np.exp(self._peak[part] - peak)
        self._sum[part] = self._sum[part] * rescale + weights.sum(axis=1)
        self._peak[part] = peak
        return weights, rescale

    def update_all(
        self,
        start: int,
        logits: npt.NDArray[np.floating],
        workers: Workers | None = None,
        *,
        at: int = 0,
    ) -> None:
        """Add logits [R, width] at positions ``at`` onward, in blocks on ``workers``."""

        def update(rows: slice) -> None:
            self.update(start, logits[rows], at + rows.start)

        pool = workers or Workers(1)
        pool.rows(update, logits.shape[0], block_rows(logits.shape[1]))

    @property
    def weight_sum(self) -> Float64Array:
        """Float64 [P], sum of exponentials of the logits less the peak so far."""
        return self._sum

    def result(self) -> TokenScores:
        """Return the scores; every token id must have been seen."""
        logsumexp = self._peak + np.log(self._sum)
        return TokenScores(
            log_probability=self._wanted_logit - logsumexp,
            logsumexp=logsumexp,
            top_ids=self._top_ids,
            top_log_probability=self._top - logsumexp[:, None],
        )

    def _gather(self, part: slice, start: int, strip: Float64Array) -> None:
        column = self._wanted[part] - start
        rows = np.flatnonzero((column >= 0) & (column < strip.shape[1]))
        self._wanted_logit[part.start + rows] = strip[rows, column[rows]]

    def _merge_top(self, part: slice, start: int, strip: Float64Array) -> None:
        count = min(self._top.shape[1], strip.shape[1])
        if count == 1:
            best = strip.argmax(axis=1)[:, None]
        else:
            best = np.argpartition(-strip, count - 1, axis=1)[:, :count]
        values = np.hstack([self._top[part], np.take_along_axis(strip, best, axis=1)])
        ids = np.hstack([self._top_ids[part], best + start])
        order = np.lexsort((ids, -values), axis=1)[:, : self._top.shape[1]]
        self._top[part] = np.take_along_axis(values, order, axis=1)
        self._top_ids[part] = np.take_along_axis(ids, order, axis=1)


def block_rows(width: int) -> int:
    """Return how many rows of ``width`` logits make a block."""
    return max(1, BLOCK_ELEMENTS // width)


def score_logits(
    logits: npt.NDArray[np.floating], wanted: npt.NDArray[np.int64], *, top_k: int = 1
) -> TokenScores:
    """Return the scores of whole logits [P, vocab_size]."""
    accumulator = ScoreAccumulator(wanted, top_k=top_k)
    accumulator.update(0, logits)
    return accumulator.result()
