"""Quality on plain text: perplexity, and divergence from the float32 reference.

Text is cut into windows that are each run from an empty cache, as the published figures of
quantized models are. Divergence counts every position; perplexity every token but a window's
first. Logits are held for a bounded number of positions, never for the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import Float32Array
from edgekit.engine.session import InferenceSession
from edgekit.errors import CalibrationError, ContextOverflowError, EngineError
from edgekit.evaluate.divergence import Divergence, DivergenceAccumulator, perplexity
from edgekit.evaluate.reference import (
    HiddenStates,
    ReferenceModel,
    Tokens,
    sequence_blocks,
    sequence_bounds,
)
from edgekit.evaluate.scores import Float64Array, ScoreAccumulator
from edgekit.evaluate.workers import Workers
from edgekit.progress import SILENT, Progress
from edgekit.units import MIB

WINDOW = 512
LIMIT = 8192
LOGIT_BYTES = 128 * MIB
"""Float32 logits of the candidate held at a time: 512 positions up to a vocabulary of 65k."""

_Strips = Iterator[tuple[int, Float32Array]]


@dataclass(frozen=True, slots=True)
class TextSample:
    """Windows of text, with what the reference makes of them: made once, measured often.

    Attributes:
        windows: Token ids, int64 [S] each, S >= 2.
        reference: The model that ran; None measures perplexity alone.
        states: Its final hidden states and activation maxima; None without a reference.
    """

    windows: tuple[Tokens, ...]
    reference: ReferenceModel | None = None
    states: HiddenStates | None = None


@dataclass(frozen=True, slots=True)
class TextQuality:
    """Figures of one candidate on one sample; None where there was no reference.

    Attributes:
        tokens: Positions compared.
        perplexity: Of the candidate.
        reference_perplexity: Of the reference.
        kl_divergence_nats: Mean KL(reference || candidate) per position.
        kl_divergence_max_nats: Largest of a position.
        top1_agreement: Fraction of positions with the same best token.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    kl_divergence_nats: float | None = None
    kl_divergence_max_nats: float | None = None
    top1_agreement: float | None = None

    def to_dict(self) -> dict[str, float | int]:
        """Return the JSON form; what was not measured is left out."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


def split_windows(
    tokens: Sequence[int] | Tokens, window: int = WINDOW, limit: int = LIMIT
) -> tuple[Tokens, ...]:
    """Cut the first ``limit`` tokens into windows; a last one of a single token is dropped.

    Raises:
        CalibrationError: There are fewer than two tokens.
    """
    ids = np.asarray(tokens, np.int64)[:limit]
    if len(ids) < 2:
        raise CalibrationError(
            f"the text has {len(ids)} tokens, at least 2 are needed", "Give a longer text"
        )
    parts = (ids[start : start + window] for start in range(0, len(ids), window))
    return tuple(part for part in parts if len(part) >= 2)


def measure_session(
    session: InferenceSession,
    sample: TextSample,
    *,
    slot: int = 0,
    progress: Progress = SILENT,
) -> TextQuality:
    """Measure an engine on a sample, in one of its slots.

    Args:
        session: Any engine.
        sample: What it is measured on.
        slot: Cache slot to use; its content is replaced.
        progress: Advanced by the tokens that pass; the caller starts and finishes.

    Raises:
        ContextOverflowError: A window is longer than the engine's context.
        EngineError: The engine fails, its logits are not finite, or its vocabulary is not the
            reference's.
    """
    longest = max(len(window) for window in sample.windows)
    if longest > session.max_context:
        raise ContextOverflowError(
            f"a window of {longest} tokens exceeds the context of {session.max_context}",
            "Evaluate with shorter windows, or build with a larger --max-context",
        )
    wide = sample.reference.config.vocab_size if sample.reference else session.vocab_size
    if wide != session.vocab_size:
        raise EngineError(
            f"the engine has {session.vocab_size} logits, the reference {wide}",
            "Compare a bundle with the checkpoint it was built from",
        )

    def logits(index: int, part: slice) -> _Strips:
        tokens = sample.windows[index][part].tolist()
        scores = session.prefill(slot, tokens, part.start, all_logits=True)
        progress.advance(len(tokens), f"window {index + 1}")
        yield 0, scores

    try:
        return _measure(sample, logits, session.vocab_size)
    finally:
        session.release(slot)


def compare_states(
    candidate: ReferenceModel, states: HiddenStates, sample: TextSample, *, top_k: int = 1
) -> tuple[Divergence, ...]:
    """Compare a model with the sample's reference, window by window.

    Both LM heads are read once for as many windows as fit in ``LOGIT_BYTES`` of logits.

    Args:
        candidate: The model.
        states: Its hidden states on the sample's windows.
        sample: Must have a reference.
        top_k: Best tokens to keep of each model.
    """
    reference, ours = sample.reference, sample.states
    if reference is None or ours is None:
        raise ValueError("the sample has no reference")
    rows = min(model.logit_rows(LOGIT_BYTES) for model in (reference, candidate))
    compared: list[Divergence] = []
    with Workers(reference.threads) as workers:
        for edges in sequence_blocks(sequence_bounds(sample.windows), rows):
            part = slice(len(compared), len(compared) + len(edges) - 1)
            wanted = np.concatenate([np.append(w[1:], -1) for w in sample.windows[part]])
            block = _compare(
                reference.logit_strips(np.concatenate(ours.windows[part])),
                candidate.logit_strips(np.concatenate(states.windows[part])),
                DivergenceAccumulator(wanted, top_k=top_k),
                reference.config.vocab_size,
                workers,
            )
            compared.extend(block.split(edges[1:-1] - edges[0]))
    return tuple(compared)


def _measure(
    sample: TextSample, logits: Callable[[int, slice], _Strips], vocab_size: int
) -> TextQuality:
    """Compare block by block; ``logits`` gives a block's candidate logits in strips."""
    workers = Workers(sample.reference.threads if sample.reference else 1)
    height = max(1, LOGIT_BYTES // (4 * vocab_size))
    likely: list[Float64Array] = []
    compared: list[Divergence] = []
    with workers:
        for index, window in enumerate(sample.windows):
            wanted = np.append(window[1:], -1)
            for start in range(0, len(window), height):
                part = slice(start, min(start + height, len(window)))
                strips = logits(index, part)
                if sample.reference is None or sample.states is None:
                    likely.append(_score(strips, wanted[part], workers))
                else:
                    ours = sample.reference.logit_strips(sample.states.windows[index][part])
                    accumulator = DivergenceAccumulator(wanted[part])
                    compared.append(_compare(ours, strips, accumulator, vocab_size, workers))
    return summarize(compared) if compared else _likelihood(likely)


def _score(strips: _Strips, wanted: npt.NDArray[np.int64], workers: Workers) -> Float64Array:
    accumulator = ScoreAccumulator(wanted)
    for start, strip in strips:
        accumulator.update_all(start, strip, workers)
    return accumulator.result().log_probability


def _compare(
    reference: _Strips,
    candidate: _Strips,
    accumulator: DivergenceAccumulator,
    vocab_size: int,
    workers: Workers,
) -> Divergence:
    """Walk both vocabularies at once; their strips need not have the same width."""
    start, first, second = 0, (0, _NOTHING), (0, _NOTHING)
    while start < vocab_size:
        first, second = _covering(first, reference, start), _covering(second, candidate, start)
        stop = min(begin + strip.shape[1] for begin, strip in (first, second))
        ours, theirs = (strip[:, start - b : stop - b] for b, strip in (first, second))
        accumulator.update(start, ours, theirs, workers)
        start = stop
    return accumulator.result()


_NOTHING: Float32Array = np.empty((0, 0), np.float32)


def _covering(
    current: tuple[int, Float32Array], strips: _Strips, start: int
) -> tuple[int, Float32Array]:
    return current if start < current[0] + current[1].shape[1] else next(strips)


def _likelihood(likely: list[Float64Array]) -> TextQuality:
    values = np.concatenate(likely)
    return TextQuality(tokens=len(values), perplexity=perplexity(values))


def summarize(compared: Sequence[Divergence]) -> TextQuality:
    """Return the figures over all compared positions."""
    kl = np.concatenate([part.kl_nats for part in compared])
    return TextQuality(
        tokens=len(kl),
        perplexity=perplexity(np.concatenate([d.candidate.log_probability for d in compared])),
        reference_perplexity=perplexity(
            np.concatenate([d.reference.log_probability for d in compared])
        ),
        kl_divergence_nats=float(kl.mean()),
        kl_divergence_max_nats=float(kl.max()),
        top1_agreement=float(np.concatenate([d.top1_equal for d in compared]).mean()),
    )
