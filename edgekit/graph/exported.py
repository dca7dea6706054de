"""Checks of a graph that another exporter made: valid ONNX, and quantized as its tensors say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx

from edgekit.errors import BundleError, GraphError
from edgekit.graph.check import (
    GraphReport,
    check_codes,
    default_opset,
    load_graph,
    operator_census,
)
from edgekit.graph.weights import codes_name
from edgekit.quant.scheme import scheme_of_label


def check_exported_graph(path: Path, labels: Mapping[str, str]) -> GraphReport:
    """Check a graph on disk, its external data beside it.

    Args:
        path: The graph.
        labels: Scheme label of every quantized linear by name.

    Raises:
        GraphError: The ONNX checker refuses it, or a linear's codes are not what a MatMul or Gemm
            multiplies by, or not of its scheme.
        BundleError: A label names a scheme this edgekit does not know.
    """
    try:
        graph = load_graph(path)
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        said = " ".join(str(error).split())
        raise GraphError(f"{path.name} is not valid ONNX: {said}") from error
    nodes = graph.graph.node
    decoders = {n.output[0]: n for n in nodes if n.op_type == "DequantizeLinear"}
    products = [n for n in nodes if n.op_type in {"MatMul", "Gemm"}]
    used = [decoders[n.input[1]] for n in products if n.input[1] in decoders]
    multiplied = {node.input[0]: node for node in used}
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name, label in labels.items():
        codes = codes_name(name)
        if codes not in multiplied or codes not in stored:
            raise GraphError(f"{name} should multiply by {codes}, but no node does")
        try:
            scheme = scheme_of_label(label)
        except ValueError as error:
            raise BundleError(f"{name}: {error}", "Upgrade edgekit") from error
        check_codes(name, stored[codes], multiplied[codes], scheme)
    strange = sorted(set(multiplied) - set(map(codes_name, labels)))
    if strange:
        raise GraphError(f"{path.name} multiplies by {strange[0]}, which the manifest lacks")
    counted = dict(sorted(Counter(labels.values()).items()))
    return GraphReport(default_opset(graph), operator_census(graph), counted)
