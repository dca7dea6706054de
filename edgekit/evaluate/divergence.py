"""How far one model's next-token distributions are from another's: pure arithmetic.

Kullback-Leibler divergence KL(reference || candidate) in nats per token, top-1 agreement and
perplexity, from logits that may arrive in strips of the vocabulary. Sums are float64: a good
quantization has a divergence of 1e-5, which float32 sums over 152k tokens do not resolve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import EngineError
from edgekit.evaluate.scores import Float64Array, ScoreAccumulator, TokenScores, block_rows
from edgekit.evaluate.workers import Workers

_MAX_EXPONENT = 700.0  # exp of more overflows float64


@dataclass(frozen=True, slots=True)
class Divergence:
    """Two models compared at P positions.

    Attributes:
        kl_nats: Float64 [P], KL(reference || candidate), at least 0.
        reference: The reference's scores.
        candidate: The candidate's scores.
    """

    kl_nats: Float64Array
    reference: TokenScores
    candidate: TokenScores

    @property
    def top1_equal(self) -> npt.NDArray[np.bool_]:
        """Bool [P]: both models like the same token best."""
        equal: npt.NDArray[np.bool_] = self.reference.top_ids[:, 0] == self.candidate.top_ids[:, 0]
        return equal

    def split(self, edges: npt.NDArray[np.int64]) -> list[Divergence]:
        """Split the positions before each of ``edges``."""
        kl_nats = np.split(self.kl_nats, edges)
        scores = (self.reference.split(edges), self.candidate.split(edges))
        return [Divergence(*parts) for parts in zip(kl_nats, *scores, strict=True)]


class DivergenceAccumulator:
    """Takes both models' logits strip by strip, in order of token id.

    With running peak m and p = exp(l - m) of the reference, KL is
    ``sum(p * (l_ref - l_cand)) / sum(p) - logsumexp(l_ref) + logsumexp(l_cand)``: one pass.

    Args:
        wanted: Int64 [P], tokens whose log-probabilities are wanted; -1 none.
        top_k: Best tokens to keep of each model.
    """

    def __init__(self, wanted: npt.NDArray[np.int64], *, top_k: int = 1) -> None:
        self._reference = ScoreAccumulator(wanted, top_k=top_k)
        self._candidate = ScoreAccumulator(wanted, top_k=top_k)
        self._cross = np.zeros(len(wanted))

    def update(
        self,
        start: int,
        reference: npt.NDArray[np.floating],
        candidate: npt.NDArray[np.floating],
        workers: Workers | None = None,
    ) -> None:
        """Add logits [P, width] of token ids ``start`` onward, in blocks on ``workers``."""

        def update(rows: slice) -> None:
            ours = np.asarray(reference[rows], np.float64)
            theirs = np.asarray(candidate[rows], np.float64)
            weights, rescale = self._reference.update(start, ours, rows.start)
            self._candidate.update(start, theirs, rows.start)
            moved = np.einsum("pv,pv->p", weights, ours - theirs)
            self._cross[rows] = self._cross[rows] * rescale + moved

        pool = workers or Workers(1)
        pool.rows(update, reference.shape[0], block_rows(reference.shape[1]))

    def result(self) -> Divergence:
        """Return the comparison; every token id must have been seen.

        Raises:
            EngineError: Logits were not finite.
        """
        reference, candidate = self._reference.result(), self._candidate.result()
        kl = self._cross / self._reference.weight_sum - reference.logsumexp + candidate.logsumexp
        if not np.isfinite(kl).all():
            raise EngineError(
                f"logits of position {int(np.argmin(np.isfinite(kl)))} are not finite",
                "Build with --target cpu, which computes in float32, or report the model",
            )
        return Divergence(np.maximum(kl, 0.0), reference, candidate)


def compare_logits(
    reference: npt.NDArray[np.floating],
    candidate: npt.NDArray[np.floating],
    wanted: npt.NDArray[np.int64],
) -> Divergence:
    """Compare whole logits [P, V] (:class:`DivergenceAccumulator` in one strip)."""
    accumulator = DivergenceAccumulator(wanted)
    accumulator.update(0, reference, candidate)
    return accumulator.result()


def perplexity(log_probability: Float64Array) -> float:
    """Return ``exp(-mean)`` of natural log-probabilities, capped at e**700; NaN are left out."""
    known = log_probability[~np.isnan(log_probability)]
    return math.exp(min(-float(known.mean()), _MAX_EXPONENT))
