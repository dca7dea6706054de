"""Checks of a written graph: the ONNX checker, an operator census, and plan against graph.

A quantization that was silently not applied is the classic failure of exporters, so the graph
is read back from disk and every linear is compared with the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgekit.errors import GraphError, first_line
from edgekit.graph.weights import codes_name, dense_name
from edgekit.models.config import ModelConfig, all_linears
from edgekit.quant.scheme import QuantScheme

_CODES_TYPE = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What a checked graph holds.

    Attributes:
        opset: Version of the default domain.
        census: Operator (``domain::Op`` for custom ones) to number of nodes.
        linears: Scheme label (or ``dense``) to number of linears.
    """

    opset: int
    census: dict[str, int]
    linears: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"opset": self.opset, "census": self.census, "linears": self.linears}


def check_graph(
    path: Path, config: ModelConfig, schemes: Mapping[str, QuantScheme | None]
) -> GraphReport:
    """Check a graph on disk, its external data beside it.

    Raises:
        GraphError: The ONNX checker or shape inference refuses it, or a linear is not
            quantized as planned.
    """
    try:
        model = load_graph(path)
        onnx.checker.check_model(str(path))
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        said = " ".join(str(error).split())
        raise GraphError(f"{path.name} is not valid ONNX: {said}") from error
    census = operator_census(model)
    foreign = sorted(name for name in census if "::" in name)
    if foreign:  # the ONNX checker passes over operators of domains it does not know
        raise GraphError(f"{path.name} has the operator {foreign[0]}, which is not ONNX's own")
    linears = _check_linears(model.graph, config, schemes)
    return GraphReport(default_opset(model), census, linears)


def load_graph(path: Path) -> onnx.ModelProto:
    """Read a graph without its external data.

    Raises:
        GraphError: It is no ONNX.
        OSError: It cannot be read.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's exceptions share no base class with others
        raise GraphError(f"{path.name} is not valid ONNX: {first_line(error)}") from error
    if not _is_text(model):
        raise GraphError(f"{path.name} is not valid ONNX: a name in it is not UTF-8")
    return model


def _is_text(message: Any) -> bool:
    """Whether every string of a protobuf message, and of those within, is UTF-8.

    protobuf gives those that are not as bytes, and the ONNX checker fails to quote them.
    """
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            values = [value] if isinstance(value, (str, bytes)) else value
            if not all(isinstance(text, str) for text in values):
                return False
        if field.type == field.TYPE_MESSAGE:
            values = [value] if hasattr(value, "ListFields") else value
            if not all(map(_is_text, values)):
                return False
    return True


def operator_census(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many nodes of each operator a graph has, as :class:`GraphReport` keeps it."""
    nodes = model.graph.node
    names = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes)
    return dict(sorted(names.items()))


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a graph imports; 0 for none."""
    imported = (o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    return next(imported, 0)


def _check_linears(
    graph: onnx.GraphProto, config: ModelConfig, schemes: Mapping[str, QuantScheme | None]
) -> dict[str, int]:
    makers = {output: node for node in graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    # Attention's own products have a cache or an activation on the right, not a weight.
    sources = [(_source(node.input[1], makers), node) for node in _products(graph)]
    products = [(name, node) for name, node in sources if name in stored]
    matmuls = dict(products)
    labels: Counter[str] = Counter()
    for linear in all_linears(config):
        scheme = schemes[linear.name]
        wanted = dense_name(linear.name) if scheme is None else codes_name(linear.name)
        if wanted not in matmuls:
            raise GraphError(f"{linear.name} should multiply by {wanted}, but no MatMul does")
        if scheme is not None:
            made_by = makers[matmuls[wanted].input[1]]
            check_codes(linear.name, stored[wanted], made_by, scheme)
        shape = (linear.in_features, linear.out_features)
        if tuple(stored[wanted].dims) != shape:
            raise GraphError(f"{wanted} is {list(stored[wanted].dims)}, not {list(shape)}")
        labels["dense" if scheme is None else scheme.label] += 1
    if len(products) != sum(labels.values()):
        raise GraphError(f"{len(products)} weight MatMuls for {sum(labels.values())} linears")
    return dict(sorted(labels.items()))


def check_codes(
    linear: str, codes: onnx.TensorProto, dequantize: onnx.NodeProto, scheme: QuantScheme
) -> None:
    """Check that a linear's codes and the node that dequantizes them are those of its scheme.

    Raises:
        GraphError: Names the linear and what is different.
    """
    planned = f"{linear} is planned as {scheme.label}"
    if codes.data_type != _CODES_TYPE[scheme.bits]:
        raise GraphError(f"{planned} but its codes are of another type")
    if dequantize.op_type != "DequantizeLinear":
        raise GraphError(f"{planned} but a {dequantize.op_type} makes its weight")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in dequantize.attribute}
    group_size = attributes.get("block_size", 0)
    if group_size != scheme.group_size:
        raise GraphError(f"{planned} but its group size is {group_size}")
    # Codes are [K, N]: groups lie along K, channels along N. Zero points are 0, so not given.
    if attributes.get("axis", 1) != (0 if scheme.group_size else 1):
        raise GraphError(f"{planned} but its scales lie along another axis")
    if len(dequantize.input) != 2:
        raise GraphError(f"{planned} but it has a zero point")


def _products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type in {"MatMul", "Gemm"}]


def _source(value: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Follow a MatMul's right side through DequantizeLinear and Cast to where it comes from."""
    while value in makers and makers[value].op_type in {"Cast", "DequantizeLinear"}:
        value = makers[value].input[0]
    return value
