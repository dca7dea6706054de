"""What a bundle holds beside its blobs and graphs: tokenizer, golden sequences, manifest.

The same for every exporter: each says what it read and what it made of it, as facts.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.bundle.layout import GOLDEN, TOKENIZER_FOLDER
from edgekit.bundle.writer import BundleWriter
from edgekit.checkpoint.files import read_bytes
from edgekit.checkpoint.hub import hub_commit
from edgekit.checkpoint.tokenizer_files import TokenizerFiles
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.manifest import FileEntry, GraphEntry, Manifest, TensorEntry, blob_bytes
from edgekit.evaluate.golden_set import STORED_WEIGHTS, GoldenSet
from edgekit.graph.check import GraphReport
from edgekit.graph.exponents import Exponents
from edgekit.pipeline.calibrated import run_facts
from edgekit.pipeline.compiled import Compiled
from edgekit.pipeline.options import is_local, model_name
from edgekit.pipeline.request import BuildRequest
from edgekit.plan.memory import Fit
from edgekit.quant.calibration import CalibrationSet

_TOOLS = ("numba", "numpy", "onnx", "onnxruntime", "tokenizers")
"""Packages whose versions decide the bytes."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a bundle is made of.

    Attributes:
        folder: The checkpoint's.
        model_type: Its family.
        parameters: Number of its weights.
        config: The architecture, as the manifest keeps it.
        files: Digests of the checkpoint's files.
        calibration: Data the recipe was calibrated on.
        base_sha256: Digest of the bundle this one updates.
        exporter: Versions of what made the graph, if that is not edgekit.
    """

    folder: Path
    model_type: str
    parameters: int
    config: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    calibration: CalibrationSet | None = None
    base_sha256: str | None = None
    exporter: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contents:
    """What stands in the work folder before the manifest.

    Attributes:
        tensors: The blobs.
        graphs: The graphs.
        compiled: The engines' plans, and what became of the graphs in a builder.
        report: Operators and linears of the target's graph.
        exponents: Powers of two multiplied into the weights.
        fit: Predicted memory.
        quality: The manifest's quality report.
        golden: The golden sequences.
        max_context: Tokens a sequence can hold.
        max_sequences: Sequences that can be decoded.
    """

    tensors: tuple[TensorEntry, ...]
    graphs: tuple[GraphEntry, ...]
    compiled: Compiled
    report: GraphReport
    exponents: Exponents
    fit: Fit
    quality: Mapping[str, Any]
    golden: GoldenSet
    max_context: int
    max_sequences: int


def add_files(writer: BundleWriter, tokenizer: TokenizerFiles, golden: GoldenSet) -> None:
    """Store the tokenizer's files and the golden sequences.

    Raises:
        CheckpointError: A file of the tokenizer cannot be read.
    """
    for name, path in tokenizer.files.items():
        writer.add_file(f"{TOKENIZER_FOLDER}/{name}", read_bytes(path))
    writer.add_file(GOLDEN, canonical_bytes(golden.to_dict()))


def make_manifest(
    request: BuildRequest, made_of: Ingredients, contents: Contents, files: tuple[FileEntry, ...]
) -> Manifest:
    """Return the manifest of a finished build.

    Args:
        request: What was asked for.
        made_of: What went in.
        contents: What came out.
        files: Plain files of the bundle.
    """
    name, fit = model_name(request.model), contents.fit
    weights_bytes = blob_bytes(contents.tensors)
    return Manifest(
        name=name,
        model={
            "source": name if is_local(request.model) else request.model,
            "revision": hub_commit(made_of.folder),
            "model_type": made_of.model_type,
            "parameters": made_of.parameters,
            "config": made_of.config,
        },
        checkpoint_files=made_of.files,
        recipe=_recipe(request, made_of),
        target=request.target.to_dict(),
        requirements={
            "l4t": request.target.l4t,
            "tensorrt": request.target.tensorrt,
            "onnxruntime": request.target.onnxruntime,
            "memory_bytes": fit.total_bytes,
            "disk_bytes": weights_bytes + sum(entry.size_bytes for entry in files),
        },
        limits={"max_context": contents.max_context, "max_sequences": contents.max_sequences},
        tools=_tools(made_of.exporter),
        files=files,
        graphs=contents.graphs,
        tensors=tuple(sorted(contents.tensors, key=lambda entry: entry.name)),
        f16_exponents=contents.exponents.to_dict(),
        golden=_golden(contents),
        quality=contents.quality,
        size={
            "weights_bytes": weights_bytes,
            "linear_bytes": fit.linear_bytes,
            "bits_per_linear_weight": round(fit.bits_per_linear_weight, 6),
            "graph_census": contents.report.census,
            "linears": contents.report.linears,
        },
        engine_plans=tuple(plan.to_dict() for plan in contents.compiled.plans),
        compile_check=contents.compiled.findings,
    )


def _recipe(request: BuildRequest, made_of: Ingredients) -> dict[str, Any]:
    recipe, calibration = request.recipe, made_of.calibration
    return {
        "name": recipe.name,
        "sha256": recipe.digest(),
        "resolved": recipe.resolved(),
        "calibration_sha256": calibration.digest if calibration else None,
        "calibration_run": run_facts(request, calibration),
        "base_sha256": made_of.base_sha256,
    }


def _golden(contents: Contents) -> dict[str, Any]:
    return {
        "path": GOLDEN,
        "sequences": len(contents.golden.sequences),
        "tokens": contents.golden.tokens,
        "scored_by": STORED_WEIGHTS if contents.quality["checked"] else "checkpoint",
    }


def _tools(exporter: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of what decides the bytes, the exporter's environment included."""
    # onnxruntime and onnxruntime-gpu are one module of two packages: the module knows its version.
    own = {name: str(importlib.import_module(name).__version__) for name in _TOOLS}
    return {"edgekit": __version__, **own, **exporter}
