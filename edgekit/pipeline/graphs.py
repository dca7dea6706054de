"""Writes and checks a bundle's graphs: the target's, and a float32 one for the host."""

from __future__ import annotations

from edgekit import __version__
from edgekit.bundle.writer import BundleWriter
from edgekit.contracts.manifest import GraphEntry
from edgekit.graph.builder import ActivationDtype
from edgekit.graph.check import GraphReport, check_graph
from edgekit.graph.decoder import DecoderSpec, build_decoder
from edgekit.graph.exponents import Exponents
from edgekit.graph.lowering import Lowering, StandardLowering
from edgekit.graph.lowering_trt103 import Trt103Lowering
from edgekit.models.config import ModelConfig
from edgekit.pipeline.stored import StoredModel
from edgekit.progress import SILENT, Progress
from edgekit.quant.plan import Schemes
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
    wanted: list[tuple[Dialect, ActivationDtype]] = [(target.dialect, target.activation_dtype)]
    if wanted[0] != ("standard", "float32"):
        wanted.append(("standard", "float32"))
    entries, reports = [], []
    for index, (dialect, dtype) in enumerate(wanted):
        lowering = lowering_for(dialect, dtype)
        spec = DecoderSpec(config, model.tensors, schemes, dtype, exponents)
        proto = build_decoder(spec, lowering, __version__)
        path = f"{dialect}.{dtype}.onnx"
        progress.advance(0, path)
        writer.add_file(path, proto.SerializeToString(deterministic=True))
        reports.append(check_graph(writer.work / path, config, schemes))
        entries.append(
            GraphEntry(
                name=f"{dialect}.{dtype}",
                path=path,
                dialect=dialect,
                opset=lowering.opset,
                activation_dtype=dtype,
                purpose="host" if index else "target",
            )
        )
    return tuple(entries), reports[0]


def lowering_for(dialect: Dialect, dtype: ActivationDtype) -> Lowering:
    """Return the lowering of a dialect."""
    return StandardLowering() if dialect == "standard" else Trt103Lowering(dtype)
