"""The reference run before quantization, and the judgement of what was stored after it.

Both run the golden sequences through :class:`~edgekit.evaluate.reference.ReferenceModel`: once over
the checkpoint, once over the bundle's blobs. Memory is bounded by a strip of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import QualityError
from edgekit.evaluate.reference import HiddenStates, ReferenceModel
from edgekit.evaluate.scores import ScoreAccumulator, TokenScores
from edgekit.graph.exponents import Exponents, choose_exponents
from edgekit.pipeline.golden import golden_windows
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.progress import Progress
from edgekit.recipe import Acceptance

Tokens = npt.NDArray[np.int64]
DECIMALS = 4
"""Decimals kept of log-probabilities, in nats: below what float rounding can change."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The unquantized model on the golden sequences.

    Attributes:
        model: The reference itself.
        windows: Token ids of the sequences.
        states: What the LM head reads.
        golden: Content of ``golden.json``.
        exponents: Powers of two its activations call for.
    """

    model: ReferenceModel
    windows: tuple[Tokens, ...]
    states: HiddenStates
    golden: dict[str, Any]
    exponents: Exponents

    @property
    def tokens(self) -> int:
        """Number of golden tokens."""
        return sum(len(window) for window in self.windows)

    def summary(self) -> dict[str, Any]:
        """Return what the manifest says of the golden sequences."""
        return {"path": "golden.json", "sequences": len(self.windows), "tokens": self.tokens}


def make_reference(checkpoint: Checkpoint, threads: int, progress: Progress) -> Reference:
    """Run the unquantized model over the golden sequences.

    Raises:
        CheckpointError: A weight is not finite, or the tokenizer does not fit the model.
    """
    windows = tuple(golden_windows(checkpoint))
    progress.start("reference", checkpoint.stored_bytes)
    model = ReferenceModel(checkpoint.config, checkpoint.tensor, threads=threads)
    states = model.hidden_states(windows, progress=progress)
    scores = model.scores(states.windows, _next_tokens(windows), top_k=2)
    exponents = choose_exponents(
        states.residual_amax,
        [layer.mlp_product for layer in states.maxima],
        [layer.value for layer in states.maxima],
    )
    progress.finish(
        f"{sum(map(len, windows))} golden tokens, largest activation {states.residual_amax:.3g}"
    )
    return Reference(model, windows, states, _golden(windows, scores), exponents)


def judge_stored(reference: Reference, stored: StoredTensors, threads: int) -> dict[str, Any]:
    """Return divergence and agreement of the stored weights from the reference.

    Keys: ``kl_divergence_nats`` (mean over golden tokens), ``kl_divergence_max_nats``,
    ``top1_agreement`` (fraction), ``tokens``, ``layers`` (largest activations a layer).
    """
    model = ReferenceModel(stored.config, stored.open, threads=threads)
    states = model.hidden_states(reference.windows)
    divergence, agree = _compare(reference, model, states)
    return {
        "engine": "numpy",
        "tokens": reference.tokens,
        "kl_divergence_nats": round(float(divergence.mean()), 6),
        "kl_divergence_max_nats": round(float(divergence.max()), 6),
        "top1_agreement": round(float(agree.mean()), 6),
        "layers": [layer.to_dict() for layer in reference.states.maxima],
    }


def require_quality(quality: Mapping[str, Any], limits: Acceptance) -> None:
    """Hold a quality report to a recipe's limits; a limit of 0 is off.

    Raises:
        QualityError: Names the figure and the limit.
    """
    divergence, most = quality["kl_divergence_nats"], limits.kl_divergence_nats_max
    if most and divergence > most:
        raise QualityError(
            f"KL divergence on the golden sequences is {divergence:.4f} nats, the recipe allows "
            f"{most}",
            "Use a recipe with more bits or smaller groups",
        )
    agreement, least = quality["top1_agreement"], limits.top1_agreement_min
    if agreement < least:
        raise QualityError(
            f"top-1 agreement on the golden sequences is {agreement:.4f}, the recipe wants {least}",
            "Use a recipe with more bits or smaller groups",
        )


def _compare(
    reference: Reference, model: ReferenceModel, states: HiddenStates
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return KL(reference || stored) [P] in nats and top-1 agreement [P] over all positions.

    Both heads are read strip by strip. With r, s the logits and p = softmax(r),
    KL = sum p (r - s) - logsumexp(r) + logsumexp(s).
    """
    ours = np.concatenate(reference.states.windows)
    theirs = np.concatenate(states.windows)
    nothing = np.full(len(ours), -1, np.int64)
    expected, stored = ScoreAccumulator(nothing), ScoreAccumulator(nothing)
    weighted = np.zeros(len(ours))
    strips = zip(reference.model.logit_strips(ours), model.logit_strips(theirs), strict=True)
    for (start, logits), (_, stored_logits) in strips:
        weights, rescale = expected.update(start, logits)
        stored.update(start, stored_logits)
        difference = logits.astype(np.float64) - stored_logits
        weighted = weighted * rescale + (weights * difference).sum(axis=1)
    a, b = expected.result(), stored.result()
    divergence = weighted / expected.weight_sum - a.logsumexp + b.logsumexp
    return np.maximum(divergence, 0.0), a.top_ids[:, 0] == b.top_ids[:, 0]


def _next_tokens(windows: Sequence[Tokens]) -> list[Tokens]:
    """Return the token that follows each position; -1 after the last."""
    return [np.append(window[1:], -1) for window in windows]


def _golden(windows: Sequence[Tokens], scores: Sequence[TokenScores]) -> dict[str, Any]:
    """Return ``golden.json``: see ``docs/bundle-format.md``."""
    sequences = []
    for window, score in zip(windows, scores, strict=True):
        margin = score.top_log_probability[:, 0] - score.top_log_probability[:, 1]
        sequences.append(
            {
                "token_ids": window.tolist(),
                "log_probability_nats": _rounded(score.log_probability[:-1]),
                "top1_ids": score.top_ids[:, 0].tolist(),
                "top1_margin_nats": _rounded(margin),
            }
        )
    return {"schema_version": 1, "sequences": sequences}


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(value), DECIMALS) for value in values]
