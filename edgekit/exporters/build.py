"""``edgekit build --exporter optimum``, stage by stage.

open -> export -> quantize -> check -> bundle. Optimum makes the float32 graph; edgekit quantizes
it, judges it by the graph it was made from, and bundles it like its own.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.bundle.reader import open_bundle
from edgekit.bundle.storage import require_space
from edgekit.bundle.writer import BundleWriter
from edgekit.checkpoint.hub import resolve_model
from edgekit.contracts import optimum_io
from edgekit.contracts.manifest import GraphEntry, Manifest
from edgekit.engine.growing_cache import GrowingCacheSession
from edgekit.errors import RecipeError, UnsupportedModelError
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.exporters.exported_graph import OPSET, open_exported
from edgekit.exporters.optimum import Optimum, find_optimum
from edgekit.exporters.quality import compare_graphs, open_exact, record_windows, run_windows
from edgekit.exporters.requantize import Requantized, refuse_calibrated, requantize
from edgekit.exporters.source import Source, context_limit, open_source
from edgekit.exporters.staging import stage_checkpoint
from edgekit.graph.exponents import Exponents
from edgekit.graph.exported import check_exported_graph
from edgekit.models.exported import ExportedConfig
from edgekit.models.families import token_id
from edgekit.pipeline.calibrated import check_device
from edgekit.pipeline.compile_findings import NO_TENSORRT, not_run
from edgekit.pipeline.compiled import Compiled
from edgekit.pipeline.contents import Contents, Ingredients, add_files, make_manifest
from edgekit.pipeline.fingerprint import CheckpointDigests
from edgekit.pipeline.golden_windows import windows_of_tokenizer
from edgekit.pipeline.options import choose_context, refuse_idle_options
from edgekit.pipeline.quality import quality_summary, require_quality
from edgekit.pipeline.request import BuildRequest, BuildResult
from edgekit.plan.memory import PREFILL_CHUNK_TOKENS, RUNTIME_ALLOWANCE_BYTES, Fit, require_fit
from edgekit.progress import SILENT, Progress
from edgekit.quant.report import error_report
from edgekit.recipe import MAX_CONTEXT
from edgekit.units import format_bytes

GRAPH_NAME = "optimum.float32"
GRAPH_FILE = f"{GRAPH_NAME}.onnx"
EXPORT_FOLDER = "export"
"""In the work folder, so that it is on the disk the user chose; removed once it is quantized."""
EXPORT_COPIES = 3
"""Float32 copies of the weights on disk at once: Optimum saves the graph twice, then the blobs."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The float graph and what it says of the golden sequences.

    Attributes:
        graph: The ONNX file.
        config: What is known of the model.
        tools: Versions of what made the graph.
        windows: The golden sequences, int64 [S] each.
        logits: The graph's logits of each, float32 [S, V].
    """

    graph: Path
    config: ExportedConfig
    tools: dict[str, str]
    windows: list[Any]
    logits: list[Any]


def build_exported(
    request: BuildRequest, python: Path | None, progress: Progress = SILENT
) -> BuildResult:
    """Build a bundle of a graph that Optimum exports.

    Args:
        request: For the target ``cpu``, without adapter, base and calibration.
        python: An interpreter that has Optimum; None takes the environment's.
        progress: Told about the stages.

    Raises:
        EdgekitError: Bad input, or a stage that cannot do its work; nothing is left at
            ``request.out``.
    """
    refuse_options(request)
    optimum = find_optimum(python, request.threads)
    progress.start("open", 0)
    source = open_source(resolve_model(request.model, revision=request.revision, progress=progress))
    progress.finish(
        f"{source.model_type}, {source.parameters / 1e6:.1f} M parameters, "
        f"{format_bytes(source.stored_bytes)}"
    )
    max_context = choose_context(request, context_limit(source.hf_config, MAX_CONTEXT))
    with BundleWriter(request.out, overwrite=request.overwrite) as writer:
        shutil.rmtree(writer.work / EXPORT_FOLDER, ignore_errors=True)  # a killed build's
        require_space(writer.work, EXPORT_COPIES * 4 * source.parameters)
        manifest, contents = _write(request, source, optimum, max_context, writer, progress)
        path = writer.finish(manifest)
        progress.finish(f"{len(manifest.tensors)} tensors, sha256:{manifest.digest()[:12]}")
    return BuildResult(
        path=path,
        digest=manifest.digest(),
        name=manifest.name,
        recipe=request.recipe.name,
        target=request.target.name,
        total_bytes=open_bundle(path).total_bytes,
        fit=contents.fit,
        quality=dict(contents.quality),
        max_context=contents.max_context,
        max_sequences=contents.max_sequences,
        compile_check=contents.compiled.findings,
    )


def refuse_options(request: BuildRequest) -> None:
    """Refuse what only the native exporter does.

    Raises:
        UnsupportedModelError: Another target than ``cpu``.
        RecipeError: An adapter, a base, calibration data or a recipe that needs it.
        CheckpointError: A revision of a local folder.
    """
    if request.target.name != "cpu":
        raise UnsupportedModelError(
            f"--exporter optimum builds for the target cpu, not {request.target.name}: its graphs "
            "are not lowered for TensorRT",
            "Use --target cpu, or a family that edgekit builds natively",
        )
    given = (("adapter", request.adapter), ("base", request.base))
    for name, value in (*given, ("calibration", request.calibration)):
        if value is not None:
            raise RecipeError(
                f"--{name} does not go with --exporter optimum",
                f"Leave out --{name}, or use --exporter native",
            )
    refuse_calibrated(request.recipe)
    refuse_idle_options(request)
    check_device(request)


def _write(
    request: BuildRequest,
    source: Source,
    optimum: Optimum,
    max_context: int,
    writer: BundleWriter,
    progress: Progress,
) -> tuple[Manifest, Contents]:
    """Run the writing stages; returns the manifest, and what it was made of."""
    folder = writer.work / EXPORT_FOLDER
    with CheckpointDigests(source.files) as digests:
        try:
            exported = _export(source, optimum, folder, progress)
            contents = _store(request, source, exported, max_context, writer, progress)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        add_files(writer, source.tokenizer, contents.golden)
        progress.start("bundle", digests.remaining_bytes)
        made_of = Ingredients(
            folder=source.path,
            model_type=source.model_type,
            parameters=source.parameters,
            config=exported.config.to_dict(),
            files=digests.result(progress),
            exporter=exported.tools,
        )
        manifest = make_manifest(request, made_of, contents, writer.files)
    return manifest, contents


def _export(source: Source, optimum: Optimum, folder: Path, progress: Progress) -> Exported:
    """Let Optimum export the checkpoint, and run the graph over the golden sequences.

    Raises:
        GraphError: The export fails.
        EngineError: The graph does not have the inputs of Optimum's decoders.
    """
    progress.start("export", 0)
    staged = folder / "checkpoint"
    config = stage_checkpoint(source, staged)
    tools = optimum.check(staged, config)
    graph = optimum.export(staged, folder / "graph", progress)
    windows = windows_of_tokenizer(source.path)
    vocab_size = config.get("vocab_size", 0)
    session = open_exact(graph, windows, vocab_size if isinstance(vocab_size, int) else 0)
    try:
        logits = run_windows(session, windows)
        known = _config(source, session)
    finally:
        session.close()
    progress.finish(
        f"optimum-onnx {tools['optimum-onnx']}, {known.num_hidden_layers} layers, "
        f"{sum(map(len, windows))} golden tokens"
    )
    return Exported(graph, known, tools, windows, logits)


def _config(source: Source, session: GrowingCacheSession) -> ExportedConfig:
    layout, config = session.layout, source.hf_config
    return ExportedConfig(
        model_type=source.model_type,
        num_hidden_layers=layout.layers,
        num_key_value_heads=layout.heads,
        head_dim=layout.dim,
        vocab_size=session.vocab_size,
        max_position_embeddings=context_limit(config, MAX_CONTEXT),
        bos_token_id=token_id(config, "bos_token_id"),
        eos_token_ids=source.eos_token_ids,
        pad_token_id=token_id(config, "pad_token_id"),
    )


def _store(
    request: BuildRequest,
    source: Source,
    exported: Exported,
    max_context: int,
    writer: BundleWriter,
    progress: Progress,
) -> Contents:
    """Quantize the graph, write it and judge it.

    Raises:
        UnsupportedModelError: The result would not fit the target's memory.
        QualityError: The recipe's limits are missed.
    """
    recipe = request.recipe
    graph = open_exported(exported.graph)
    progress.start("quantize", 4 * source.parameters)
    weights = requantize(
        graph,
        recipe,
        exported.config.vocab_size,
        writer,
        threads=request.threads,
        progress=progress,
    )
    dense = sum(scheme is None for scheme in weights.schemes.values())
    kept = f", {dense} of {len(weights.schemes)} linears dense" if dense else ""
    progress.finish(f"{weights.bits_per_linear_weight:.3f} bits per linear weight{kept}")
    writer.add_file(GRAPH_FILE, graph.proto.SerializeToString(deterministic=True))
    labels = {name: s.label for name, s in weights.schemes.items() if s is not None}
    report = check_exported_graph(writer.work / GRAPH_FILE, labels)
    entry = GraphEntry(GRAPH_NAME, GRAPH_FILE, optimum_io.DIALECT, OPSET, "float32", "target")
    max_sequences = request.max_sequences or recipe.graph.max_sequences
    fit = predict_exported(request, source, exported.config, weights, max_context, max_sequences)
    require_fit(fit, request.target)
    quality, golden = _judge(request, exported, writer.work / GRAPH_FILE, progress)
    quality["tensors"] = error_report(weights.errors, weights.schemes)
    return Contents(
        tensors=weights.entries,
        graphs=(entry,),
        compiled=Compiled((), not_run(NO_TENSORRT)),
        report=replace(report, linears=weights.labels),
        exponents=Exponents(),
        fit=fit,
        quality=quality,
        golden=golden,
        max_context=max_context,
        max_sequences=max_sequences,
    )


def predict_exported(
    request: BuildRequest,
    source: Source,
    config: ExportedConfig,
    weights: Requantized,
    max_context: int,
    max_sequences: int,
) -> Fit:
    """Return the memory a bundle takes: its float32 caches, logits of a chunk, attention scores."""
    cache = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    chunk = min(PREFILL_CHUNK_TOKENS, max_context)
    heads = source.hf_config.get("num_attention_heads")
    scores = max_context * (heads if isinstance(heads, int) else config.num_key_value_heads)
    return Fit(
        weights_bytes=weights.weights_bytes,
        linear_bytes=weights.linear_bytes,
        # The step that lengthens a cache holds the old one, too.
        cache_bytes=cache * max_context * (max_sequences + 1),
        activations_bytes=4 * chunk * (config.vocab_size + 2 * scores),
        runtime_bytes=RUNTIME_ALLOWANCE_BYTES,
        usable_bytes=request.target.usable_bytes,
        bits_per_linear_weight=weights.bits_per_linear_weight,
    )


def _judge(
    request: BuildRequest, exported: Exported, graph: Path, progress: Progress
) -> tuple[dict[str, Any], GoldenSet]:
    """Run the golden sequences through the written graph and compare.

    Raises:
        QualityError: The recipe's limits are missed.
    """
    windows = exported.windows
    if not request.check:
        report = {"checked": False, "reason": "built with --no-check"}
        return report, record_windows(windows, exported.logits)
    progress.start("check", 0)
    session = open_exact(graph, windows, exported.config.vocab_size)
    try:
        logits = run_windows(session, windows)
    finally:
        session.close()
    quality = compare_graphs(windows, exported.logits, logits)
    require_quality(quality, request.recipe.acceptance)
    progress.finish(quality_summary(quality))
    return {"checked": True, **quality}, record_windows(windows, logits)
