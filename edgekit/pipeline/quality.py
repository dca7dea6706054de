"""The reference run before quantization, and the judgement of what was stored after it.

Both run the golden sequences through :class:`~edgekit.evaluate.reference.ReferenceModel`: once over
the checkpoint, once over the bundle's blobs. Memory is bounded by a strip of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.errors import QualityError
from edgekit.evaluate.golden import golden_from_scores
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.evaluate.reference import HiddenStates, ReferenceModel, Tokens
from edgekit.evaluate.text_quality import TextSample, compare_states, summarize
from edgekit.graph.builder import ActivationDtype
from edgekit.graph.exponents import Exponents, choose_exponents, require_float16
from edgekit.graph.float16_range import ModelRange, coarse_score_warning, model_range
from edgekit.models.config import all_linears, lm_head
from edgekit.pipeline.golden_windows import golden_windows
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.progress import SILENT, Progress
from edgekit.recipe import Acceptance


@dataclass(frozen=True, slots=True)
class Reference:
    """The unquantized model on the golden sequences.

    Attributes:
        sample: The sequences and what the model makes of them.
        exponents: Powers of two the model's activations call for.
        layers: Largest activations, one mapping a layer.
        held: What the exponents of queries, keys and norms have to hold.
        warnings: One sentence each on what the target's activation type holds badly.
    """

    sample: TextSample
    exponents: Exponents
    layers: tuple[Mapping[str, float], ...]
    held: ModelRange
    warnings: tuple[str, ...] = ()


def make_reference(
    checkpoint: Checkpoint, threads: int, progress: Progress, activation_dtype: ActivationDtype
) -> Reference:
    """Run the unquantized model over the golden sequences.

    Args:
        checkpoint: The model.
        threads: Worker threads.
        progress: Told about the layers as they pass.
        activation_dtype: Of the target's graph.

    Raises:
        CheckpointError: A weight is not finite, or the tokenizer does not fit the model.
        UnsupportedModelError: The graph is to compute in float16, which cannot hold the model's
            activations.
    """
    windows = tuple(golden_windows(checkpoint))
    progress.start("reference", checkpoint.stored_bytes)
    model = ReferenceModel(checkpoint.config, checkpoint.tensor, threads=threads)
    states = model.hidden_states(windows, progress=progress)
    qk_norm, head_dim = checkpoint.config.qk_norm, checkpoint.config.head_dim
    held = model_range(states.maxima, states.final_norm, head_dim, qk_norm=qk_norm)
    exponents = choose_exponents(states.residual_amax, states.maxima, held, qk_norm=qk_norm)
    warning = None
    if activation_dtype == "float16":
        require_float16(states.maxima, held, exponents, qk_norm=qk_norm)
        warning = coarse_score_warning(states.maxima)
    tokens = sum(map(len, windows))
    progress.finish(f"{tokens} tokens, largest activation {states.residual_amax:.3g}")
    layers = tuple(layer.to_dict() for layer in states.maxima)
    sample = TextSample(windows, model, states)
    return Reference(sample, exponents, layers, held, (warning,) if warning else ())


def judge_stored(
    reference: Reference, stored: StoredTensors, threads: int, progress: Progress = SILENT
) -> tuple[dict[str, Any], GoldenSet]:
    """Run the stored weights over the golden sequences.

    Args:
        reference: The unquantized model.
        stored: The weights.
        threads: Threads of the arithmetic.
        progress: Told that a stage ``check`` begins, and the bytes that pass; the caller finishes.

    Returns:
        The quality report against the reference: the keys of
        :class:`~edgekit.evaluate.text_quality.TextQuality`, rounded to six decimals, and
        ``layers`` and ``final_norm_amax``, the reference's largest activations. And the golden
        sequences as the stored weights score them, which is what an engine that runs them must
        reproduce.
    """
    opened = [stored.open(linear.weight_key) for linear in all_linears(stored.config)]
    progress.start("check", sum(tensor.stored_bytes for tensor in opened))
    model = ReferenceModel(stored.config, stored.open, threads=threads)
    states = model.hidden_states(reference.sample.windows, progress=progress)
    head = lm_head(stored.config)
    progress.advance(0, head.name)
    compared = compare_states(model, states, reference.sample, top_k=2)
    progress.advance(opened[-1].stored_bytes, head.name)
    quality = summarize(compared).to_dict()
    report: dict[str, Any] = {name: round(value, 6) for name, value in quality.items()}
    report["layers"] = [dict(layer) for layer in reference.layers]
    report["final_norm_amax"] = float(f"{reference.held.final_norm.output:.4g}")
    scores = [part.candidate for part in compared]
    return report, golden_from_scores(reference.sample.windows, scores)


def record_golden(
    model: ReferenceModel, windows: Sequence[Tokens], states: HiddenStates
) -> GoldenSet:
    """Return the golden sequences with what ``model`` says of them."""
    following = [np.append(window[1:], -1) for window in windows]
    return golden_from_scores(windows, model.scores(states.windows, following, top_k=2))


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


def quality_summary(quality: Mapping[str, Any]) -> str:
    """Return a quality report's two figures in words."""
    return (
        f"KL divergence {quality['kl_divergence_nats']:.4f} nats, top-1 agreement "
        f"{100 * quality['top1_agreement']:.1f} %"
    )
