"""``edgekit verify``: is a bundle what its manifest says, and does it answer as recorded?"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from edgekit.bundle.reader import Bundle
from edgekit.bundle.verify import verify_digests
from edgekit.contracts.manifest import GraphEntry
from edgekit.engine.load import open_session
from edgekit.engine.ort import Provider, newest_opset
from edgekit.engine.session import InferenceSession
from edgekit.errors import BundleError, ContextOverflowError, EngineError, MissingExtraError
from edgekit.evaluate.golden import GoldenLimits, GoldenReport, check_golden
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.graph.weights import codes_name
from edgekit.models.config import ModelConfig, all_linears
from edgekit.models.exported import stored_config
from edgekit.pipeline.compile_findings import not_run
from edgekit.power import read_machine
from edgekit.progress import SILENT, Progress
from edgekit.quant.scheme import QuantScheme, scheme_of_label

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
    provider: Provider = "cpu",
    threads: int = 2,
    graphs: bool = True,
    run: bool = True,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Check digests, with ``graphs`` the graphs and with ``run`` the golden sequences.

    With both the target's graph is compiled, too, where this machine has a TensorRT builder.

    On a CPU every graph runs: float32 ones as `edgekit run` runs them, float16 ones as they are
    written, so that what would overflow float16 on the device does here. On CUDA the target's run.

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
    reports = None
    if graphs:
        progress.start("graphs", 0)
        reports = check_graphs(bundle, progress)
        progress.finish(", ".join(reports))
    return {
        "bundle": str(bundle.path),
        "digest": f"sha256:{bundle.digest}",
        "files": digests.files,
        "blobs": digests.blobs,
        "checked_bytes": digests.checked_bytes,
        "graphs": reports and {name: report.to_dict() for name, report in reports.items()},
        "compile_check": _compile(bundle, graphs=graphs, run=run, progress=progress),
        "golden": _run_golden(bundle, provider, threads, progress) if run else None,
        "machine": read_machine().to_dict(),
    }


def _compile(bundle: Bundle, *, graphs: bool, run: bool, progress: Progress) -> dict[str, Any]:
    """Compile the target's graph; returns the findings, or why it was not compiled."""
    for wanted, option in ((graphs, "--no-graphs"), (run, "--no-run")):
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
        schemes = stored_schemes(bundle, config)
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


def stored_schemes(bundle: Bundle, config: ModelConfig) -> dict[str, QuantScheme | None]:
    """Return each linear's scheme as the manifest's tensors say.

    Raises:
        BundleError: A tensor names a scheme this edgekit does not know.
    """
    labels = {e.name: e.scheme for e in bundle.manifest.tensors if e.role == "codes"}
    schemes: dict[str, QuantScheme | None] = {}
    for linear in all_linears(config):
        label = labels.get(codes_name(linear.name))
        try:
            schemes[linear.name] = None if label is None else scheme_of_label(label)
        except ValueError as error:
            raise BundleError(f"{linear.name}: {error}", "Upgrade edgekit") from error
    return schemes


def _runs_on_cuda(graph: GraphEntry) -> bool:
    return graph.purpose == "target" and graph.dialect != "trt103"


def _run_golden(
    bundle: Bundle, provider: Provider, threads: int, progress: Progress
) -> dict[str, Any]:
    """Run the golden sequences on an engine; returns each graph's report by its name."""
    golden = GoldenSet.from_dict(bundle.golden())
    newest = newest_opset()
    graphs = [
        graph
        for graph in bundle.manifest.graphs
        if graph.opset <= newest and (provider == "cpu" or _runs_on_cuda(graph))
    ]
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
        reports[graph.name] = _check(session, golden, graph, progress)
    progress.finish(f"{golden.tokens} tokens on {provider}: {', '.join(reports)}")
    return {name: report.to_dict() for name, report in reports.items()}


def _check(
    session: InferenceSession, golden: GoldenSet, entry: GraphEntry, progress: Progress
) -> GoldenReport:
    """Run the golden sequences through one graph and close it.

    Raises:
        EngineError: The engine fails, or the graph's logits are not finite.
        QualityError: The graph's answers are too far from the recorded ones.
    """
    try:
        report = check_golden(session, golden, ENGINE_LIMITS, progress=progress)
    except ContextOverflowError:
        raise
    except EngineError as error:
        raise EngineError(f"{entry.name}: {error.message}", error.remedy) from error
    finally:
        session.close()
    report.require(entry.name)
    return report
