"""From logits to the next token: greedy, temperature, top-k, top-p, min-p.

The random draw of a step is a function of the seed and the step alone (Philox is
counter-based), so a sequence is the same whatever else is decoded in its batch and wherever
it was interrupted.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Final, overload

import numpy as np
import numpy.typing as npt

from edgekit.engine.candidates import Candidates, Row
from edgekit.errors import EngineError

SEED_LIMIT: Final = 1 << 64
SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
_BLOCK: Final = 1024
_BIN_SHIFT: Final = 16
"""A weight's bin is its float32 bits without the lowest 16: order-preserving, 0.8 % wide."""
TOTAL_ERROR: Final = 1e-4
"""Relative error that a device's float32 sum of weights may have, well above that of sums in a
tree. A nucleus that this could change is taken of the whole row."""
EDGE_ERROR: Final = 1e-6
"""Weights this close may be in another order than their logits: exp is not exactly monotonic."""

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when generation stops.

    Attributes:
        temperature: Divides the logits; 0 is greedy (the other choices are then unused).
        top_p: Keep the smallest set of most likely tokens whose probabilities sum to at
            least this; 1 keeps all.
        top_k: Keep this many most likely tokens; 0 keeps all. Applied before ``top_p``.
        seed: Of the random draws; None picks one (``Sampler.seed`` tells which).
        max_tokens: Most tokens to generate; None is up to the end of the context.
        stop: Strings that end the generation; they are not part of the text.
        min_p: Keep tokens with at least this share of the best one's probability; 0 keeps all.
            Applied last (Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024).

    Raises:
        EngineError: A value is outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0

    def __post_init__(self) -> None:
        checks = (
            (math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "0 or more"),
            (0 < self.top_p <= 1, "top_p", "more than 0 and at most 1"),
            (self.top_k >= 0, "top_k", "0 or more"),
            (0 <= self.min_p <= 1, "min_p", "in 0 to 1"),
            (self.seed is None or 0 <= self.seed < SEED_LIMIT, "seed", "in 0 to 2**64 - 1"),
            (self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "1 or more"),
            (isinstance(self.stop, tuple) and all(self.stop), "stop", "a tuple of strings"),
        )
        for valid, name, wanted in checks:
            if not valid:
                raise EngineError(f"{name} is {getattr(self, name)!r}", f"It must be {wanted}")


class Sampler:
    """Draws one sequence's tokens.

    Args:
        params: How to choose.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self._philox = np.random.Philox(key=np.array([self.seed, 0], dtype=np.uint64))
        self._state = self._philox.state
        self._counter = self._state["state"]["counter"]

    @property
    def selects_at(self) -> float | None:
        """What candidates must be summed at: the temperature, 0 if greedy; None: whole rows."""
        params = self.params
        if self._greedy:
            return 0.0
        return None if params.top_k == 0 and params.top_p == 1 else params.temperature

    def sample(self, logits: Row, step: int) -> int:
        """Return the token chosen at ``step``.

        Args:
            logits: float32 [V]; ``-inf`` forbids a token. Or candidates selected at ``selects_at``:
                the token is the same, and the whole row is fetched where they do not tell it.
            step: Index of the generated token, from 0; it selects the random draw.

        Raises:
            EngineError: The logits have a NaN or no finite maximum.
        """
        if isinstance(logits, Candidates):
            token = self._among(logits, step)
            return self.sample(logits.row(), step) if token is None else token
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise EngineError(
                f"The logits have no finite maximum (token {best} has {logits[best]})",
                "The model overflows: verify the bundle, and compare with one of recipe float16",
            )
        if self._greedy:
            return best
        params = self.params
        weights = self._weights(logits, logits[best])
        candidates = None if params.top_k == 0 else largest(weights, params.top_k)
        if params.top_p < 1:
            candidates = nucleus(weights, params.top_p, candidates)
        candidates = self._likely_enough(weights, candidates)
        kept = weights if candidates is None else weights[candidates]
        at = draw(kept, self._uniform(step))
        return at if candidates is None else int(candidates[at])

    @property
    def _greedy(self) -> bool:
        # Below float32's normal range a division would be by zero: its limit is greedy.
        return self.params.temperature < SMALLEST_TEMPERATURE or self.params.top_k == 1

    def _weights(self, logits: Float32Array, best: np.float32) -> Float32Array:
        with np.errstate(over="ignore", under="ignore"):
            # float32: numpy's vectorized exp; sums of weights are float64.
            result: Float32Array = np.exp((logits - best) / np.float32(self.params.temperature))
        return result

    @overload
    def _likely_enough(self, weights: Float32Array, kept: IndexArray) -> IndexArray: ...
    @overload
    def _likely_enough(
        self, weights: Float32Array, kept: IndexArray | None
    ) -> IndexArray | None: ...
    def _likely_enough(self, weights: Float32Array, kept: IndexArray | None) -> IndexArray | None:
        """Return those of ``kept`` (None: of all) that ``min_p`` leaves; the best weighs 1."""
        if not self.params.min_p:
            return kept
        if kept is None:
            return np.flatnonzero(weights >= self.params.min_p)
        return kept[weights[kept] >= self.params.min_p]

    def _among(self, candidates: Candidates, step: int) -> int | None:
        """Return the token that the whole row would give; None where candidates do not tell."""
        best = candidates.best()
        if self._greedy or best is None:
            return best
        params = self.params
        tokens, logits = candidates.in_order()
        weights = self._weights(logits, candidates.logits[0])
        # Tokens outside weigh at most this; a choice is certain where all of it weighs more.
        complete = candidates.edge == -np.inf
        outside = -1.0 if complete else float(weights.min()) * (1 + EDGE_ERROR)
        kept: IndexArray | None
        if params.top_k:
            kept = largest(weights, params.top_k) if params.top_k <= len(weights) else None
            if kept is not None and params.top_p < 1:
                kept = nucleus(weights, params.top_p, kept)
        else:
            kept = covered_nucleus(weights, params.top_p, candidates.total)
        if kept is None or weights[kept].min() <= outside:
            return None
        kept = self._likely_enough(weights, kept)
        return int(tokens[kept[draw(weights[kept], self._uniform(step))]])

    def _uniform(self, step: int) -> float:
        """Return the step's draw in [0, 1); the low counter word is left to the generator."""
        # Making a generator every step costs 9 us, setting the state of one costs 1.5.
        self._counter[3] = step
        self._philox.state = self._state
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53  # as Generator.random makes it


def draw(weights: Float32Array, uniform: float) -> int:
    """Return the index at which the cumulative share of ``weights`` passes ``uniform``.

    Args:
        weights: float32 [N], not negative, not all zero.
        uniform: In [0, 1).
    """
    if len(weights) <= _BLOCK:
        sums = np.cumsum(weights, dtype=np.float64)
        at = int(sums.searchsorted(uniform * sums[-1], side="right"))
        return at if at < len(weights) else int(np.flatnonzero(weights)[-1])
    # Sums of blocks, then one block: no float64 copy of a whole vocabulary.
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64).cumsum()
    target = uniform * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    start = block * _BLOCK
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    before = blocks[block - 1] if block else 0.0
    at = int(np.searchsorted(inside, target - before, side="right"))
    # Rounding may leave the target past the last sum: take the last weight that is not zero.
    return start + min(at, int(np.flatnonzero(weights[start : start + _BLOCK])[-1]))


def largest(weights: Float32Array, count: int) -> IndexArray:
    """Return the indices of the ``count`` largest weights, in index order.

    Of equal weights at the edge the lowest indices are kept, so that the choice does not
    depend on how a partition happens to arrange ties.

    Args:
        weights: float32 [V], no NaN.
        count: 1 or more; V or more returns all.
    """
    if count >= len(weights):
        return np.arange(len(weights))
    edge = np.partition(weights, len(weights) - count)[len(weights) - count]
    kept = np.flatnonzero(weights >= edge)
    if len(kept) == count:
        return kept
    ties = kept[weights[kept] == edge]
    dropped = ties[len(ties) - (len(kept) - count) :]
    return np.setdiff1d(kept, dropped, assume_unique=True)


def nucleus(weights: Float32Array, top_p: float, among: IndexArray | None = None) -> IndexArray:
    """Return the smallest set of most likely tokens that holds ``top_p`` of the probability.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), section 3.1.

    Args:
        weights: float32 [V] not normalized probabilities, not negative.
        top_p: In (0, 1).
        among: Indices the set is taken from, and normalized over; None is all.

    Returns:
        Indices in index order, at least one; of equal tokens at the edge the first are in.
    """
    pool = weights if among is None else weights[among]
    wanted = top_p * float(np.sum(pool, dtype=np.float64))
    if len(pool) <= _BLOCK:
        few = _leading(pool, wanted)[0]
        return few if among is None else among[few]
    # Tokens this small hold less than 1 - top_p even all together: none is in the set.
    kept: IndexArray = np.flatnonzero(pool >= 0.5 * (1 - top_p) * pool.max() / len(pool))
    among = kept if among is None else among[kept]
    pool = weights[among]
    # Sorting a flat vocabulary costs 20 ms; summing it into bins of nearly equal weights costs
    # one, and only the bin in which top_p is reached has to be sorted.
    bins = (pool.view(np.uint32) >> _BIN_SHIFT).astype(np.intp)
    mass = np.bincount(bins, weights=pool)[::-1].cumsum()
    edge = max(len(mass) - 1 - int(np.searchsorted(mass, wanted, side="left")), 0)
    above = np.flatnonzero(bins > edge)
    tied = np.flatnonzero(bins == edge)
    order = tied[np.argsort(-pool[tied], kind="stable")]
    so_far = np.sum(pool[above], dtype=np.float64)
    reached = so_far + np.cumsum(pool[order], dtype=np.float64)
    size = int(np.searchsorted(reached, wanted, side="left")) + 1
    chosen: IndexArray = among[np.sort(np.concatenate([above, order[:size]]))]
    return chosen


def covered_nucleus(weights: Float32Array, top_p: float, total: float | None) -> IndexArray | None:
    """Return the nucleus of a vocabulary of whose weights only the largest are at hand.

    Args:
        weights: float32 [k], the largest, in the tokens' order.
        top_p: In (0, 1).
        total: Sum of all weights, correct to ``TOTAL_ERROR``; None is not known.

    Returns:
        Indices in index order; None where the weights do not reach ``top_p``, or it is so close to
        an edge of the set that the error of ``total`` decides.
    """
    if total is None:
        return None
    chosen, before, after = _leading(weights, top_p * total)
    certain = before + TOTAL_ERROR * total < top_p * total < after - TOTAL_ERROR * total
    return chosen if certain else None


def _leading(weights: Float32Array, wanted: float) -> tuple[IndexArray, float, float]:
    """Return the fewest largest weights that sum to ``wanted`` (all, if none do), by sorting.

    Returns:
        Indices in index order, of equal ones the first; the sum without their last; their sum.
    """
    order = np.argsort(-weights, kind="stable")
    reached = np.cumsum(weights[order], dtype=np.float64)
    last = min(int(reached.searchsorted(wanted, side="left")), len(weights) - 1)
    before = float(reached[last - 1]) if last else 0.0
    return np.sort(order[: last + 1]), before, float(reached[last])
