"""``edgekit build``, stage by stage.

open -> plan -> reference -> quantize -> graph -> compile -> check -> bundle. Each stage is a
function of frozen inputs; this module only orders them. What fails in a way that repeating cannot
mend leaves nothing; an interruption or a full disk leaves the work folder, and the next run
resumes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.bundle.output import require_free
from edgekit.bundle.reader import open_bundle
from edgekit.bundle.storage import require_space
from edgekit.bundle.writer import BundleWriter
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.hub import resolve_model
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.manifest import GraphEntry, Manifest
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.graph.exponents import Exponents
from edgekit.models.config import ModelConfig, count_parameters
from edgekit.pipeline.base import Base, describe_update, open_base
from edgekit.pipeline.calibrated import (
    kept_stream_bytes,
    mix_schemes,
    read_calibration,
    store_calibrated,
)
from edgekit.pipeline.compile_findings import not_run
from edgekit.pipeline.compiled import Compiled, check_compiles, plan_engines
from edgekit.pipeline.contents import Contents, Ingredients, add_files, make_manifest
from edgekit.pipeline.fingerprint import CheckpointDigests, files_as_they_are
from edgekit.pipeline.graphs import write_graphs
from edgekit.pipeline.kept import kept_schemes, refuse_requantizing
from edgekit.pipeline.options import choose_context, refuse_idle_options
from edgekit.pipeline.quality import (
    Reference,
    judge_stored,
    make_reference,
    quality_report,
    quality_summary,
    record_golden,
    require_quality,
)
from edgekit.pipeline.request import BuildRequest, BuildResult
from edgekit.pipeline.stored import (
    Store,
    StoredModel,
    count_stored_bytes,
    store_tensors,
)
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.plan.memory import Fit, predict_fit, require_fit
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.plan import Schemes, plan_quantization
from edgekit.quant.report import error_report
from edgekit.units import format_bytes

SPACE_MARGIN_BYTES = 2_000_000
"""Room beside weights, tokenizer and layers: the blobs' folders, 4 kB each, and the manifest."""
LAYER_MARGIN_BYTES = 150_000
"""Room a layer takes: its nodes and manifest rows, and its blobs' last disk blocks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be built, decided before anything is written."""

    schemes: Schemes
    calibration: CalibrationSet | None
    base: Base | None
    fit: Fit
    max_context: int
    max_sequences: int


def build(request: BuildRequest, progress: Progress = SILENT) -> BuildResult:
    """Build a bundle.

    Raises:
        EdgekitError: Bad input, or a stage that cannot do its work; nothing is left at
            ``request.out``.
    """
    refuse_idle_options(request)
    require_free(request.out, overwrite=request.overwrite)  # before gigabytes are fetched
    progress.start("open", 0)
    folder = resolve_model(request.model, revision=request.revision, progress=progress)
    checkpoint = open_checkpoint(folder, adapter=request.adapter)
    progress.finish(describe(checkpoint))
    plan = make_plan(request, checkpoint, progress)
    with BundleWriter(request.out, overwrite=request.overwrite) as writer:
        # What an earlier try stored need not fit once more.
        missing = max(0, plan.fit.weights_bytes - writer.stored_bytes)
        streams = kept_stream_bytes(request, checkpoint.config, plan.calibration)
        require_space(writer.work, missing + streams + _margin_bytes(checkpoint))
        path, manifest = _write(request, checkpoint, plan, writer, progress)
    bundle = open_bundle(path)
    return BuildResult(
        path=path,
        digest=manifest.digest(),
        name=manifest.name,
        recipe=request.recipe.name,
        target=request.target.name,
        total_bytes=bundle.total_bytes,
        fit=plan.fit,
        quality=dict(manifest.quality),
        max_context=plan.max_context,
        max_sequences=plan.max_sequences,
        compile_check=dict(manifest.compile_check or {}),
        update=describe_update(plan.base, bundle) if plan.base else None,
    )


def _margin_bytes(checkpoint: Checkpoint) -> int:
    """Return room for what a bundle holds beside its weights."""
    tokenizer = sum(path.stat().st_size for path in checkpoint.tokenizer.files.values())
    layers = checkpoint.config.num_hidden_layers * LAYER_MARGIN_BYTES
    return SPACE_MARGIN_BYTES + layers + tokenizer


def make_plan(request: BuildRequest, checkpoint: Checkpoint, progress: Progress = SILENT) -> Plan:
    """Decide schemes and sizes, and refuse what does not fit the target.

    Raises:
        RecipeError: The recipe does not fit the model.
        CalibrationError: The recipe needs calibration data that is missing or wrong.
        UnsupportedModelError: The result would not fit the target's memory, or its context is more
            than the model's or less than a bundle needs.
    """
    recipe, config = request.recipe, checkpoint.config
    kept = kept_schemes(checkpoint)
    refuse_requantizing(recipe, kept)
    schemes = {**plan_quantization(config, recipe.rules()), **kept}
    calibration = read_calibration(request, checkpoint)
    if calibration is not None and recipe.quant.mixed_bits_per_weight:
        schemes = mix_schemes(request, checkpoint, schemes, calibration, progress)
    base = open_base(request, config, schemes)
    max_context = choose_context(request, config.max_position_embeddings)
    max_sequences = request.max_sequences or recipe.graph.max_sequences
    fit = predict_fit(
        config,
        schemes,
        recipe.quant.embedding.dtype,
        request.target,
        max_context=max_context,
        max_sequences=max_sequences,
    )
    require_fit(fit, request.target)
    return Plan(schemes, calibration, base, fit, max_context, max_sequences)


def describe(checkpoint: Checkpoint) -> str:
    """Return one line about a checkpoint."""
    config = checkpoint.config
    return (
        f"{config.model_type}, {count_parameters(config) / 1e6:.1f} M parameters, "
        f"{config.num_hidden_layers} layers, {format_bytes(checkpoint.stored_bytes)}"
    )


def _write(
    request: BuildRequest,
    checkpoint: Checkpoint,
    plan: Plan,
    writer: BundleWriter,
    progress: Progress,
) -> tuple[Path, Manifest]:
    """Run the writing stages; returns the bundle's path and manifest."""
    with CheckpointDigests(checkpoint.files) as digests:
        reference = make_reference(
            checkpoint, request.threads, progress, request.target.activation_dtype
        )
        if plan.base is not None:
            kept = plan.base.keep_exponents(reference)
            reference = replace(reference, exponents=kept)
        model = _store_weights(request, checkpoint, plan, reference.exponents, writer, progress)
        contents = _write_graphs(
            request, checkpoint.config, plan, reference, model, writer, progress
        )
        add_files(writer, checkpoint.tokenizer, contents.golden)
        progress.start("bundle", digests.remaining_bytes)
        made_of = Ingredients(
            folder=checkpoint.path,
            model_type=checkpoint.config.model_type,
            parameters=count_parameters(checkpoint.config),
            config=checkpoint.config.to_dict(),
            files=digests.result(progress),
            calibration=plan.calibration,
            base_sha256=plan.base.bundle.digest if plan.base else None,
        )
        manifest = make_manifest(request, made_of, contents, writer.files)
        progress.advance(0, "writing to disk")
        path = writer.finish(manifest)
        progress.finish(f"{len(manifest.tensors)} tensors, sha256:{manifest.digest()[:12]}")
    return path, manifest


def _store_weights(
    request: BuildRequest,
    checkpoint: Checkpoint,
    plan: Plan,
    exponents: Exponents,
    writer: BundleWriter,
    progress: Progress,
) -> StoredModel:
    """Store every tensor, calibrated ones first."""
    identity = _identity(checkpoint, plan.base)
    store = Store(checkpoint, identity, writer, exponents, request.threads, progress, plan.base)
    model, quant = StoredModel(), request.recipe.quant
    if plan.calibration is not None and quant.algorithm != "rtn":
        store_calibrated(request, store, plan.schemes, plan.calibration, model)
    progress.start("quantize", count_stored_bytes(checkpoint))
    store_tensors(store, plan.schemes, quant.embedding.dtype, plan.max_context, model)
    progress.finish(f"{plan.fit.bits_per_linear_weight:.3f} bits per linear weight")
    return model


def _write_graphs(
    request: BuildRequest,
    config: ModelConfig,
    plan: Plan,
    reference: Reference,
    model: StoredModel,
    writer: BundleWriter,
    progress: Progress,
) -> Contents:
    """Write the graphs over the stored tensors, and judge these.

    Raises:
        GraphError: A graph does not pass its checks.
        QualityError: The recipe's limits are missed.
    """
    progress.start("graph", 0)
    graphs, report = write_graphs(
        writer, config, plan.schemes, model, reference.exponents, request.target, progress
    )
    progress.finish(f"{', '.join(g.name for g in graphs)}, {sum(report.census.values())} nodes")
    compiled = _compile(request, plan, writer, graphs, model, progress)
    measured, golden = _judge(request, config, reference, model, writer, progress)
    tensors = error_report(model.errors, plan.schemes)
    return Contents(
        tensors=tuple(model.entries),
        graphs=graphs,
        compiled=compiled,
        report=report,
        exponents=reference.exponents,
        fit=plan.fit,
        quality=quality_report(measured, tensors, reference.warnings),
        golden=golden,
        max_context=plan.max_context,
        max_sequences=plan.max_sequences,
    )


def _compile(
    request: BuildRequest,
    plan: Plan,
    writer: BundleWriter,
    graphs: tuple[GraphEntry, ...],
    model: StoredModel,
    progress: Progress,
) -> Compiled:
    """Plan the engines and compile them, or say why not.

    Raises:
        GraphError: The builder's parser refuses the graph, or the engine is not what it says.
        EngineError: The builder fails.
    """
    plans = plan_engines(
        request.target, graphs, max_context=plan.max_context, max_sequences=plan.max_sequences
    )
    if not request.compile_check:
        return Compiled(plans, not_run("built with --no-compile-check"))
    tensors = tuple(model.entries)
    return Compiled(plans, check_compiles(writer.work, graphs, plans, tensors, progress))


def _judge(
    request: BuildRequest,
    config: ModelConfig,
    reference: Reference,
    model: StoredModel,
    writer: BundleWriter,
    progress: Progress,
) -> tuple[dict[str, Any] | None, GoldenSet]:
    """Judge the stored weights on the golden sequences, by the recipe's limits.

    Returns:
        The figures, None without a check; and the sequences, scored.

    Raises:
        QualityError: The limits are missed.
    """
    sample = reference.sample
    if not request.check:
        if sample.reference is None or sample.states is None:
            raise AssertionError
        golden = record_golden(sample.reference, sample.windows, sample.states)
        return None, golden
    entries = {entry.name: entry for entry in model.entries}
    untied = replace(config, tie_word_embeddings=False)
    stored = StoredTensors(writer.work, entries, untied, reference.exponents)
    quality, golden = judge_stored(reference, stored, request.threads, progress)
    require_quality(quality, request.recipe.acceptance)
    progress.finish(quality_summary(quality))
    return quality, golden


def _identity(checkpoint: Checkpoint, base: Base | None) -> str:
    """Digest of what decides a stored tensor's bytes: the checkpoint's files as they are, the base.

    Size and time of change stand for a shard's content here: this key only decides whether an
    interrupted build may take up its own work.
    """
    shards = files_as_they_are(checkpoint.files)
    source = {"shards": shards, "base": base.bundle.digest if base else None}
    return hashlib.sha256(canonical_bytes(source)).hexdigest()
