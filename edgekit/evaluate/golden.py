"""Golden sequences: made from the float32 reference at build, checked on every engine.

The check is teacher-forced: the engine is fed the recorded tokens and its log-probabilities are
compared. Comparing generated tokens would reject right engines, since two near-equal logits may
swap; top-1 agreement therefore counts only where the recorded margin is clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.engine.session import InferenceSession
from edgekit.errors import BundleError, ContextOverflowError, QualityError
from edgekit.evaluate.golden_set import GoldenSequence, GoldenSet
from edgekit.evaluate.reference import Tokens
from edgekit.evaluate.scores import Float64Array, ScoreAccumulator, TokenScores
from edgekit.progress import SILENT, Progress
from edgekit.units import MIB

DIGITS = 4
"""Decimal places of recorded log-probabilities: engines differ by more."""
LOGIT_BYTES = 64 * MIB
"""Float32 logits of an engine held at a time."""


@dataclass(frozen=True, slots=True)
class GoldenLimits:
    """What an engine must keep on the golden sequences; 0 turns a limit off.

    Attributes:
        kl_divergence_nats_max: Of the mean lower bound of KL(reference || engine).
        top1_agreement_min: Fraction of clear positions with the recorded best token.
        mean_abs_difference_nats_max: Of the next tokens' log-probabilities.
        max_abs_difference_nats_max: The same, of the worst position.
        margin_nats: A position is clear when the best token leads by at least this.
    """

    kl_divergence_nats_max: float = 0.0
    top1_agreement_min: float = 0.0
    mean_abs_difference_nats_max: float = 0.0
    max_abs_difference_nats_max: float = 0.0
    margin_nats: float = 0.5


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """How an engine did on the golden sequences.

    Attributes:
        sequences: Sequences run.
        tokens: Tokens run.
        clear_positions: Positions where the recorded margin was clear.
        top1_agreement: Fraction of the clear positions with the recorded best token; 1.0 when
            none was clear.
        kl_divergence_bound_nats: Mean over positions of a lower bound of KL(reference ||
            engine): the divergence over the next token and all others as one event (data
            processing inequality).
        mean_abs_difference_nats: Of the next tokens' log-probabilities.
        max_abs_difference_nats: The same, of the worst position.
        failures: One sentence a limit that is missed.
    """

    sequences: int
    tokens: int
    clear_positions: int
    top1_agreement: float
    kl_divergence_bound_nats: float
    mean_abs_difference_nats: float
    max_abs_difference_nats: float
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return not self.failures

    def to_dict(self) -> dict[str, float | int | bool | list[str]]:
        """Return the JSON form."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "failures": list(self.failures), "passed": self.passed}

    def require(self, graph: str) -> None:
        """Raise unless every limit is kept.

        Raises:
            QualityError: Names the graph and the limits that it misses.
        """
        if self.failures:
            raise QualityError(
                f"the golden sequences fail on {graph}: " + "; ".join(self.failures),
                "The graph or its engine computes something else than the stored weights: "
                "build the bundle again with this version, or report the model",
            )


def golden_from_scores(windows: Sequence[Tokens], scores: Sequence[TokenScores]) -> GoldenSet:
    """Record scores that are known already.

    Args:
        windows: Ids of each sequence, [n].
        scores: At its n positions: the next token's log-probability, and the two best tokens.
    """
    return GoldenSet(tuple(map(_record, windows, scores)))


def check_golden(
    session: InferenceSession,
    golden: GoldenSet,
    limits: GoldenLimits,
    *,
    slot: int = 0,
    progress: Progress = SILENT,
) -> GoldenReport:
    """Run the golden sequences through an engine and compare.

    Args:
        session: Any engine.
        golden: The sequences and what was recorded of them.
        limits: What the engine must keep.
        slot: Cache slot to use; its content is replaced.
        progress: Advanced by the tokens of each sequence; the caller starts and finishes.

    Raises:
        ContextOverflowError: A sequence does not fit the engine's context.
        BundleError: A sequence holds ids outside the engine's vocabulary.
        EngineError: The engine fails.
    """
    measured: list[Float64Array] = []
    agreed: list[npt.NDArray[np.bool_]] = []
    for number, sequence in enumerate(golden.sequences, start=1):
        scores = _score(session, sequence, slot)
        progress.advance(len(sequence.token_ids), f"sequence {number}")
        measured.append(scores.log_probability[:-1])
        clear = np.asarray(sequence.top1_margin_nats) >= limits.margin_nats
        agreed.append((scores.top_ids[:, 0] == np.asarray(sequence.top1_ids))[clear])
    session.release(slot)
    recorded = [np.asarray(sequence.log_probability_nats) for sequence in golden.sequences]
    return compare_scores(recorded, measured, agreed, limits, tokens=golden.tokens)


def compare_scores(
    recorded: Sequence[Float64Array],
    measured: Sequence[Float64Array],
    agreed: Sequence[npt.NDArray[np.bool_]],
    limits: GoldenLimits,
    *,
    tokens: int,
) -> GoldenReport:
    """Judge an engine by the log-probabilities that it gives tokens which were scored before.

    Args:
        recorded: Of each sequence, what the tokens' log-probabilities should be, [P].
        measured: The engine's, [P].
        agreed: At the sequence's clear positions, whether the best token is the recorded one.
        limits: What the engine must keep.
        tokens: Tokens that were run.
    """
    wanted, got = np.concatenate(recorded), np.concatenate(measured)
    difference, agreement = np.abs(got - wanted), np.concatenate(agreed)
    report = GoldenReport(
        sequences=len(recorded),
        tokens=tokens,
        clear_positions=len(agreement),
        top1_agreement=float(agreement.mean()) if len(agreement) else 1.0,
        kl_divergence_bound_nats=float(_next_token_kl(wanted, got).mean()),
        mean_abs_difference_nats=float(difference.mean()),
        max_abs_difference_nats=float(difference.max()),
    )
    return _judge(report, limits)


def _record(window: Tokens, score: TokenScores) -> GoldenSequence:
    def rounded(values: Float64Array) -> tuple[float, ...]:
        return tuple(round(value, DIGITS) for value in values.tolist())

    top = score.top_log_probability
    return GoldenSequence(
        token_ids=tuple(window.tolist()),
        log_probability_nats=rounded(score.log_probability[:-1]),
        top1_ids=tuple(score.top_ids[:, 0].tolist()),
        top1_margin_nats=rounded(top[:, 0] - top[:, 1]),
    )


def _score(session: InferenceSession, sequence: GoldenSequence, slot: int) -> TokenScores:
    """Return the engine's scores at every position, its logits held a block at a time."""
    tokens = sequence.token_ids
    largest = max(*tokens, *sequence.top1_ids)
    if largest >= session.vocab_size:
        raise BundleError(
            f"a golden sequence holds token id {largest}, the engine has {session.vocab_size}",
            "The golden sequences are another model's: build the bundle again",
        )
    if len(tokens) > session.max_context:
        raise ContextOverflowError(
            f"a golden sequence has {len(tokens)} tokens, the context holds {session.max_context}",
            "Build with a larger --max-context",
        )
    accumulator = ScoreAccumulator(np.asarray([*tokens[1:], -1]))
    height = max(1, LOGIT_BYTES // (4 * session.vocab_size))
    for start in range(0, len(tokens), height):
        part = tokens[start : start + height]
        logits = session.prefill(slot, part, start, all_logits=True)
        accumulator.update_all(0, logits, at=start)
    return accumulator.result()


def _next_token_kl(recorded: Float64Array, engine: Float64Array) -> Float64Array:
    """Return KL of the event "the next token is the recorded one", float64 [P].

    Both log-probabilities are kept from 0 by a resolution of the record, so that rounding to a
    certain event does not count as infinitely far.
    """
    least = 10.0**-DIGITS
    log_p, log_q = np.minimum(recorded, -least), np.minimum(engine, -least)
    p, other_p, other_q = np.exp(log_p), -np.expm1(log_p), -np.expm1(log_q)
    kl: Float64Array = p * (log_p - log_q) + other_p * np.log(other_p / other_q)
    return np.maximum(kl, 0.0)


def _judge(report: GoldenReport, limits: GoldenLimits) -> GoldenReport:
    """Return the report with the limits it misses."""
    checks = (
        ("kl_divergence_bound_nats", limits.kl_divergence_nats_max, 1),
        ("mean_abs_difference_nats", limits.mean_abs_difference_nats_max, 1),
        ("max_abs_difference_nats", limits.max_abs_difference_nats_max, 1),
        ("top1_agreement", limits.top1_agreement_min, -1),
    )
    failures = [
        f"{name} is {getattr(report, name):.4g}, the limit {limit:g}"
        for name, limit, sign in checks
        if limit > 0 and not sign * getattr(report, name) <= sign * limit
    ]
    values = {name: getattr(report, name) for name in report.__slots__}
    return GoldenReport(**{**values, "failures": tuple(failures)})
