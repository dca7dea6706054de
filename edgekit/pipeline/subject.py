"""From MODEL to what ``edgekit plan`` plans: a bundle, a folder with a config.json, a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.bundle.reader import Bundle, is_bundle, open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.json_file import find_json, read_json
from edgekit.errors import RecipeError, UnsupportedModelError
from edgekit.graph.weights import codes_name
from edgekit.models.config import ModelConfig, all_linears
from edgekit.models.exported import stored_config
from edgekit.models.families import model_config_from_hf
from edgekit.models.published_shapes import find_shape
from edgekit.pipeline.kept import kept_schemes
from edgekit.pipeline.options import choose_context, is_local, model_name
from edgekit.pipeline.request import BuildRequest
from edgekit.plan.planner import Subject
from edgekit.quant.plan import plan_quantization
from edgekit.quant.scheme import QuantScheme, scheme_of_label
from edgekit.recipe import Recipe
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
        model: A bundle, a folder with at least a ``config.json``, or a published model's name.
        recipe: How it would be quantized; None for a bundle only, which brings its own.
        max_context: Overrides the recipe's, or the bundle's.
        max_sequences: Likewise.

    Raises:
        RecipeError: A recipe for a bundle, or one that does not fit the model.
        CheckpointError: MODEL is nothing of these, or is damaged.
        UnsupportedModelError: A model that ``build`` refuses, too.
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
    kept: dict[str, QuantScheme] = {}
    if is_local(model):
        config, kept = _read_folder(path)
    else:
        config = find_shape(model)
    request = BuildRequest(model, TARGETS["orin"], recipe, Path(), max_context=max_context)
    return Subject(
        model_name(model),
        config,
        recipe.name,
        {**plan_quantization(config, recipe.rules()), **kept},
        recipe.quant.embedding.dtype,
        choose_context(request, config.max_position_embeddings),
        max_sequences or recipe.graph.max_sequences,
        _notes(recipe),
    )


def _read_folder(path: Path) -> tuple[ModelConfig, dict[str, QuantScheme]]:
    """Read a configuration, and the schemes of weights that are quantized already."""
    hf_config = read_json(path / "config.json")
    config = model_config_from_hf(hf_config, find_json(path / "generation_config.json"))
    if "quantization_config" not in hf_config or not any(path.glob("*.safetensors")):
        return config, {}
    return config, kept_schemes(open_checkpoint(path))


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
    labels = {entry.name: entry.scheme for entry in manifest.tensors}
    schemes = {}
    for linear in all_linears(config):
        label = labels.get(codes_name(linear.name))
        schemes[linear.name] = scheme_of_label(label) if label else None
    return Subject(
        manifest.name,
        config,
        manifest.recipe["name"],
        schemes,
        manifest.recipe["resolved"]["quant"]["embedding"]["dtype"],
        manifest.limits["max_context"],
        manifest.limits["max_sequences"],
    )
