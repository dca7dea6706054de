"""Checks of a graph that another exporter made: valid ONNX, and quantized as its tensors say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx

from edgekit.errors import GraphError
from edgekit.graph.check import GraphReport
from edgekit.graph.weights import codes_name


def check_exported_graph(path: Path, labels: Mapping[str, str]) -> GraphReport:
    """Check a graph on disk, its external data beside it.

    Args:
        path: The graph.
        labels: Scheme label of every quantized linear by name.

    Raises:
        GraphError: The ONNX checker refuses it, or a linear's codes are not what a MatMul or Gemm
            multiplies by.
    """
    try:
        onnx.checker.check_model(str(path))
        graph = onnx.load(path, load_external_data=False)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"{path.name} is not valid ONNX: {error}") from error
    nodes = graph.graph.node
    census = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes)
    opset = next(o.version for o in graph.opset_import if o.domain in {"", "ai.onnx"})
    decoded = {n.output[0]: n.input[0] for n in nodes if n.op_type == "DequantizeLinear"}
    products = [n for n in nodes if n.op_type in {"MatMul", "Gemm"}]
    multiplied = Counter(decoded.get(n.input[1], "") for n in products)
    for name in labels:
        if not multiplied[codes_name(name)]:
            raise GraphError(f"{name} should multiply by {codes_name(name)}, but no node does")
    quantized = {codes_name(name) for name in labels}
    strange = sorted(set(multiplied) - quantized - {""})
    if strange:
        raise GraphError(f"{path.name} multiplies by {strange[0]}, which the manifest lacks")
    counted = dict(sorted(Counter(labels.values()).items()))
    return GraphReport(opset, dict(sorted(census.items())), counted)
