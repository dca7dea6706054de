"""Writes and checks a bundle's graphs: the target's, and float32 ones for the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekit import __version__
from edgekit.bundle.writer import BundleWriter
from edgekit.contracts.derived import derived_bytes, derived_path
from edgekit.contracts.manifest import GraphEntry
from edgekit.graph.builder import ActivationDtype, derived_tensors
from edgekit.graph.check import GraphReport, check_graph
from edgekit.graph.check_ort import check_ort_graph
from edgekit.graph.decoder import DecoderSpec, build_decoder
from edgekit.graph.exponents import Exponents
from edgekit.graph.lowering import Lowering, StandardLowering
from edgekit.graph.lowering_ort import OrtLowering, fits_ort
from edgekit.graph.lowering_trt103 import Trt103Lowering
from edgekit.models.config import ModelConfig
from edgekit.pipeline.stored import StoredModel
from edgekit.progress import SILENT, Progress
from edgekit.quant.plan import Schemes
from edgekit.quant.scheme import QuantScheme
from edgekit.targets import Dialect, Target


def write_graphs(
    writer: BundleWriter,
    config: ModelConfig,
    schemes: Schemes,
    model: StoredModel,
    exponents: Exponents,
    target: Target,
    progress: Progress = SILENT,
) -> tuple[tuple[GraphEntry, ...], GraphReport]:
    """Write every graph the target needs; returns their entries and the target's report.

    Raises:
        GraphError: A written graph does not pass its checks.
    """
    entries, reports = [], []
    for dialect, dtype in wanted_graphs(config, target):
        lowering = lowering_for(dialect, dtype)
        spec = DecoderSpec(config, model.tensors, schemes, dtype, exponents)
        proto = build_decoder(spec, lowering, __version__)
        path = f"{dialect}.{dtype}.onnx"
        progress.advance(0, path)
        writer.add_file(path, proto.SerializeToString(deterministic=True))
        if derived := derived_tensors(proto):
            writer.add_file(derived_path(path), derived_bytes(derived))
        reports.append(check_dialect(writer.work / path, dialect, config, schemes))
        entries.append(
            GraphEntry(
                name=f"{dialect}.{dtype}",
                path=path,
                dialect=dialect,
                opset=lowering.opset,
                activation_dtype=dtype,
                purpose="target" if dtype == target.activation_dtype else "host",
            )
        )
    return tuple(entries), reports[0]


def wanted_graphs(config: ModelConfig, target: Target) -> list[tuple[Dialect, ActivationDtype]]:
    """Return the graphs of a bundle, the target's own first.

    Beside it a float32 graph for hosts, and both once more for ONNX Runtime alone.
    """
    wanted: list[tuple[Dialect, ActivationDtype]] = [
        (target.dialect, target.activation_dtype),
        ("standard", "float32"),
    ]
    if fits_ort(config):
        wanted += [("ort", target.activation_dtype), ("ort", "float32")]
    return list(dict.fromkeys(wanted))


def check_dialect(
    path: Path, dialect: str, config: ModelConfig, schemes: Mapping[str, QuantScheme | None]
) -> GraphReport:
    """Check a graph on disk by the rules of its dialect.

    Raises:
        GraphError: It is not valid, or not as planned.
        BundleError: The list of weights beside an ``ort`` graph is missing or wrong.
    """
    return (check_ort_graph if dialect == "ort" else check_graph)(path, config, schemes)


def lowering_for(dialect: Dialect, dtype: ActivationDtype) -> Lowering:
    """Return the lowering of a dialect."""
    if dialect == "standard":
        return StandardLowering()
    return OrtLowering(dtype) if dialect == "ort" else Trt103Lowering(dtype)
