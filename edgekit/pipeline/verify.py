"""``edgekit verify``: is a bundle what its manifest says, and does it answer as recorded?"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.bundle.reader import Bundle
from edgekit.bundle.verify import verify_digests
from edgekit.contracts.manifest import GraphEntry
from edgekit.engine.load import AnyProvider, open_engine, open_session
from edgekit.engine.ort_open import newest_opset
from edgekit.engine.session import InferenceSession
from edgekit.errors import ContextOverflowError, EngineError, MissingExtraError
from edgekit.evaluate.golden import GoldenLimits, GoldenReport, check_golden
from edgekit.evaluate.golden_set import STORED_WEIGHTS, GoldenSet
from edgekit.graph.weights import codes_name
from edgekit.models.config import ModelConfig
from edgekit.models.exported import stored_config
from edgekit.pipeline.compile_findings import not_run
from edgekit.pipeline.stored_schemes import stored_schemes
from edgekit.power import read_machine
from edgekit.progress import SILENT, Progress

if TYPE_CHECKING:  # it imports onnx, which a device does without
    from edgekit.graph.check import GraphReport

ENGINE_LIMITS = GoldenLimits(
    kl_divergence_nats_max=0.02, mean_abs_difference_nats_max=0.25, top1_agreement_min=0.97
)
"""How far an engine may be from the stored weights in float32: room for float16 and for int8
activations (ONNX Runtime's fast 4-bit kernels), none for a wrong graph."""

ROW_SCHEME = "w8-row"
"""Of embeddings: one scale a row, looked up and multiplied rather than dequantized."""


def verify_bundle(
    bundle: Bundle,
    *,
    provider: AnyProvider = "cpu",
    threads: int = 2,
    graphs: bool = True,
    run: bool = True,
    compiling: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Check digests, with ``graphs`` the graphs and with ``run`` the golden sequences.

    With both and ``compiling`` the target's graph is compiled, too, where this machine has a
    TensorRT builder.

    On a CPU every graph runs: float32 ones as `edgekit run` runs them, float16 ones as they are
    written, so that what would overflow float16 on the device does here. On CUDA the target's run,
    on TensorRT the engine of this machine, built if it must be.

    Returns:
        The report of ``docs/schemas/verify.schema.json``.

    Raises:
        MissingExtraError: ``graphs`` is set and onnx is not installed; nothing was checked.
        BundleError: A byte is not what the manifest says.
        GraphError: A graph is not valid or not as planned, or a TensorRT builder refuses it.
        QualityError: The engine's answers are further from the recorded ones than the build's
            own figures allow.
    """
    if graphs:
        _require_onnx()
    digests = verify_digests(bundle, threads=threads, progress=progress)
    asked = {"--no-graphs": graphs, "--no-run": run, "--no-compile-check": compiling}
    reports = None
    if graphs:
        progress.start("graphs", 0)
        reports = check_graphs(bundle, progress)
        progress.finish(", ".join(reports))
    found = _compile(bundle, asked, progress)
    left_out = _left_out(bundle, provider) if run else {}
    return {
        "bundle": str(bundle.path),
        "digest": f"sha256:{bundle.digest}",
        "files": digests.files,
        "blobs": digests.blobs,
        "checked_bytes": digests.checked_bytes,
        "graphs": reports and {name: report.to_dict() for name, report in reports.items()},
        "compile_check": found,
        "golden": _run_golden(bundle, provider, threads, left_out, progress) if run else None,
        "golden_scored_by": bundle.manifest.golden["scored_by"],
        "left_out": left_out,
        "machine": read_machine().to_dict(),
    }


def _compile(bundle: Bundle, asked: Mapping[str, bool], progress: Progress) -> dict[str, Any]:
    """Compile the target's graph; returns the findings, or which option left it out.

    Args:
        bundle: The bundle.
        asked: Options that leave it out, and whether each was not given.
        progress: Told about the stage.
    """
    for option, wanted in asked.items():
        if not wanted:
            return not_run(f"verified with {option}")
    from edgekit.pipeline.compiled import check_bundle  # noqa: PLC0415 - imports onnx

    return check_bundle(bundle, progress)


def _require_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError(
            "Checking graphs",
            "host",
            "or leave it out with --no-graphs, as devices do: they were checked when they were "
            "built, and every byte is under a digest",
        )


def check_graphs(bundle: Bundle, progress: Progress = SILENT) -> dict[str, GraphReport]:
    """Check every graph of a bundle against its tensors; returns the reports by name.

    Raises:
        GraphError: A graph is not valid or not as planned.
        BundleError: A tensor names a scheme this edgekit does not know.
    """
    from edgekit.graph.exported import check_exported_graph  # noqa: PLC0415 - imports onnx
    from edgekit.pipeline.graphs import check_dialect  # noqa: PLC0415 - imports onnx

    graphs = bundle.manifest.graphs
    config = stored_config(bundle.manifest.model["config"])
    reports = {}
    if isinstance(config, ModelConfig):
        schemes = stored_schemes(bundle.manifest.tensors, config)
        for graph in graphs:
            progress.advance(0, graph.name)
            path = bundle.path / graph.path
            reports[graph.name] = check_dialect(path, graph.dialect, config, schemes)
        return reports
    labels = {
        entry.name.removesuffix(codes_name("")): entry.scheme
        for entry in bundle.manifest.tensors
        if entry.role == "codes" and entry.scheme and entry.scheme != ROW_SCHEME
    }
    for graph in graphs:
        progress.advance(0, graph.name)
        reports[graph.name] = check_exported_graph(bundle.path / graph.path, labels)
    return reports


def _left_out(bundle: Bundle, provider: AnyProvider) -> dict[str, str]:
    """Return why a graph does not run here, by the graph's name.

    Raises:
        MissingExtraError: ONNX Runtime is not installed, and the provider is one of its own.
    """
    if provider == "tensorrt":
        planned = {plan["graph"] for plan in bundle.manifest.engine_plans}
        names = {graph.name for graph in bundle.manifest.graphs} - planned
        return dict.fromkeys(sorted(names), "on TensorRT only the engine plan's graph runs")
    newest = newest_opset()
    reasons = {}
    for graph in bundle.manifest.graphs:
        if graph.opset > newest:
            reasons[graph.name] = (
                f"this ONNX Runtime takes opset {newest} at most, and it is of opset {graph.opset}"
            )
        elif provider == "cuda" and not _runs_on_cuda(graph):
            reasons[graph.name] = "on CUDA only the target's graph runs"
    return reasons


def _runs_on_cuda(graph: GraphEntry) -> bool:
    return graph.purpose == "target" and graph.dialect != "trt103"


def _run_golden(
    bundle: Bundle,
    provider: AnyProvider,
    threads: int,
    left_out: Collection[str],
    progress: Progress,
) -> dict[str, Any]:
    """Run the golden sequences on an engine; returns each graph's report by its name."""
    golden = GoldenSet.from_dict(bundle.golden())
    if provider == "tensorrt":
        return _run_golden_on_tensorrt(bundle, golden, progress)
    graphs = [graph for graph in bundle.manifest.graphs if graph.name not in left_out]
    if not graphs:
        raise EngineError(
            f"no graph of the bundle runs on {provider} with this ONNX Runtime",
            "Verify it with --provider cpu, and ONNX Runtime 1.24 or newer",
        )
    config = stored_config(bundle.manifest.model["config"])
    progress.start("golden", len(graphs) * golden.tokens, "tokens")
    reports = {}
    for graph in graphs:
        # ONNX Runtime's optimizations compute whole stretches of a float16 graph in float32.
        exact = provider == "cpu" and graph.activation_dtype == "float16"
        options = {"threads": threads, **({"exact": True} if exact else {})}
        session = open_session(bundle, graph, config, provider, options)
        reports[graph.name] = _check(session, golden, gate_limits(bundle), graph, progress)
    progress.finish(f"{golden.tokens} tokens on {provider}: {', '.join(reports)}")
    return {name: report.to_dict() for name, report in reports.items()}


def _run_golden_on_tensorrt(
    bundle: Bundle, golden: GoldenSet, progress: Progress
) -> dict[str, Any]:
    """Run the golden sequences on this machine's engine of the bundle."""
    config = stored_config(bundle.manifest.model["config"])
    session = open_engine(bundle, config, None, progress, 1)
    plan = bundle.manifest.engine_plans[0]
    entry = next(graph for graph in bundle.manifest.graphs if graph.name == plan["graph"])
    progress.start("golden", golden.tokens, "tokens")
    report = _check(session, golden, gate_limits(bundle), entry, progress)
    progress.finish(f"{golden.tokens} tokens on tensorrt: {entry.name}")
    return {entry.name: report.to_dict()}


def gate_limits(bundle: Bundle) -> GoldenLimits:
    """Return what an engine must keep on a bundle's golden sequences.

    There are no limits where the sequences are the checkpoint's (``--no-check``): what quantization
    lost is in their differences, too.
    """
    checked = bundle.manifest.golden["scored_by"] == STORED_WEIGHTS
    return ENGINE_LIMITS if checked else GoldenLimits()


def _check(
    session: InferenceSession,
    golden: GoldenSet,
    limits: GoldenLimits,
    entry: GraphEntry,
    progress: Progress,
) -> GoldenReport:
    """Run the golden sequences through one graph and close it.

    Raises:
        EngineError: The engine fails, or the graph's logits are not finite.
        QualityError: The graph's answers are too far from the recorded ones.
    """
    try:
        report = check_golden(session, golden, limits, progress=progress)
    except ContextOverflowError:
        raise
    except EngineError as error:
        raise EngineError(f"{entry.name}: {error.message}", error.remedy) from error
    finally:
        session.close()
    report.require(entry.name)
    return report
