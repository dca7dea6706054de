"""From MODEL to what ``edgekit plan`` plans: a bundle, a config.json here or on the hub, a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.bundle.reader import Bundle, is_bundle, open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.outline import read_description
from edgekit.errors import RecipeError, UnsupportedModelError
from edgekit.graph.weights import codes_name
from edgekit.models.config import ModelConfig, all_linears
from edgekit.models.exported import stored_config
from edgekit.models.published_shapes import find_shape, has_shape
from edgekit.pipeline.kept import kept_schemes, refuse_requantizing
from edgekit.pipeline.options import choose_context, is_local, model_name
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.stored_schemes import stored_schemes
from edgekit.plan.planner import Subject
from edgekit.quant.plan import plan_quantization
from edgekit.quant.scheme import QuantScheme
from edgekit.recipe import EmbeddingType, Recipe
from edgekit.targets import TARGETS


def open_subject(
    model: str,
    recipe: Recipe | None,
    *,
    max_context: int | None = None,
    max_sequences: int | None = None,
) -> Subject:
    """Return what is to be planned.

    Args:
        model: A bundle, a folder with at least a ``config.json``, a published model's name, or the
            hub id of any other; of that the configuration alone is fetched.
        recipe: How it would be quantized; None for a bundle only, which brings its own.
        max_context: Overrides the recipe's, or the bundle's.
        max_sequences: Likewise.

    Raises:
        RecipeError: A recipe for a bundle, or one that does not fit the model or would choose
            anew what is quantized already.
        CheckpointError: MODEL is nothing of these, or is damaged.
        UnsupportedModelError: A model that ``build`` refuses, too.
        HubError: A hub id that is not found, gated, or offline and not cached.
    """
    path = Path(model).expanduser()
    if is_local(model) and is_bundle(path):
        if recipe is not None:
            raise RecipeError(
                f"--recipe does nothing for {model}: a bundle is quantized already",
                "Leave --recipe out, or give the checkpoint",
            )
        subject = _from_bundle(open_bundle(path))
        context = max_context or subject.max_context
        sequences = max_sequences or subject.max_sequences
        return replace(subject, max_context=context, max_sequences=sequences)
    if recipe is None:
        raise AssertionError
    config, kept, notes = _read(model, recipe)
    refuse_requantizing(recipe, kept)
    request = BuildRequest(model, TARGETS["orin"], recipe, Path(), max_context=max_context)
    return Subject(
        model_name(model),
        config,
        recipe.name,
        {**plan_quantization(config, recipe.rules()), **kept},
        recipe.quant.embedding.dtype,
        choose_context(request, config.max_position_embeddings),
        max_sequences or recipe.graph.max_sequences,
        (*notes, *_notes(recipe)),
    )


def _read(
    model: str, recipe: Recipe
) -> tuple[ModelConfig, dict[str, QuantScheme], tuple[str, ...]]:
    """Read a configuration and the schemes that a build keeps; with what must be said of them."""
    if not is_local(model) and (has_shape(model) or "/" not in model):
        return find_shape(model), {}, ()
    described = read_description(model)
    if not described.packed:
        return described.config, {}, ()
    if described.weights is None:
        note = (
            f"{model_name(model)} is quantized already, and its weights are not here: counted by "
            f"{recipe.name}; a build keeps codes of its own that edgekit can store, and is of "
            "their size"
        )
        return described.config, {}, (note,)
    kept = kept_schemes(open_checkpoint(described.weights))
    labels = "".join(f" {label}" for label in sorted({x.label for x in kept.values()}))
    note = (
        f"{len(kept)} of {len(all_linears(described.config))} linears keep the checkpoint's own "
        f"codes{labels}, as in a build; the others are counted by {recipe.name}"
    )
    return described.config, kept, (note,)


def _notes(recipe: Recipe) -> tuple[str, ...]:
    budget = recipe.quant.mixed_bits_per_weight
    if not budget:
        return ()
    return (
        f"{recipe.name} spends {budget:g} bits a weight by measurement, which needs the weights: "
        "counted here without, by its tables",
    )


def _from_bundle(bundle: Bundle) -> Subject:
    manifest = bundle.manifest
    config = stored_config(manifest.model["config"])
    if not isinstance(config, ModelConfig):
        raise UnsupportedModelError(
            f"{bundle.path} was exported by Optimum: its shapes are not edgekit's to count",
            "Plan a model of the families edgekit builds natively",
        )
    quantized = codes_name("model.embed_tokens") in {entry.name for entry in manifest.tensors}
    embedding: EmbeddingType = "int8" if quantized else "float16"
    return Subject(
        manifest.name,
        config,
        manifest.recipe["name"],
        stored_schemes(manifest.tensors, config),
        embedding,
        manifest.limits["max_context"],
        manifest.limits["max_sequences"],
    )
