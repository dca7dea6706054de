"""What a bundle's graph still needs before TensorRT takes it; the stored graph stays as it is.

Two rewrites, made on the graph in memory right before it is parsed. Neither changes a value by
more than a rounding.
"""

from __future__ import annotations

import onnx
from onnx import helper

from edgekit.contracts import engine_io
from edgekit.errors import GraphError

CAPACITY = "capacity"
"""Symbolic dimension of the caches in edgekit's graphs."""
_ALL = "trt.all"


def specialize(model: onnx.ModelProto, capacity: int) -> None:
    """Make a graph one that TensorRT parses.

    Args:
        model: The graph, changed in place.
        capacity: Tokens a cache holds.

    Raises:
        GraphError: An int8 embedding is not looked up as edgekit's graphs do it.
    """
    fix_capacity(model, capacity)
    _dequantize_rows(model.graph)


def fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """Give the caches a static length: TensorRT refuses to update one of unknown length."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == CAPACITY:
                dim.dim_value = capacity


def _dequantize_rows(graph: onnx.GraphProto) -> None:
    """Look rows of an int8 embedding up after DequantizeLinear, not before.

    TensorRT takes int8 constants nowhere but before a dequantization ("Quantized constant is only
    allowed before DQ"); it joins the two again, so that only the wanted rows are read. ONNX
    Runtime would dequantize the whole table in every step, so the bundle's graph looks up first.
    """
    int8 = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    for lookup in [node for node in graph.node if node.op_type == "Gather"]:
        if lookup.input[0] in int8 and lookup.input[1] == engine_io.INPUT_IDS:
            _swap(graph, lookup)


def _swap(graph: onnx.GraphProto, lookup: onnx.NodeProto) -> None:
    """Turn Mul(Cast(Gather(codes)), Gather(scales)) into Gather(DequantizeLinear(...))."""
    makers = {output: node for node in graph.node for output in node.output}
    wide = _reader(graph, lookup.output[0], "Cast")
    product = _reader(graph, wide.output[0], "Mul")
    other = makers[next(name for name in product.input if name != wide.output[0])]
    casts = [other] if other.op_type == "Cast" else []
    scales = makers[other.input[0]] if casts else other
    if scales.op_type != "Gather" or scales.input[1] != engine_io.INPUT_IDS:
        raise GraphError(f"{lookup.name} looks int8 rows up without their scales")
    name = lookup.input[0]
    flat, table = f"{name}.trt_scales", f"{name}.trt_table"
    made = [helper.make_node("Reshape", [scales.input[0], _ALL], [flat], name=flat)]
    if casts:
        cast = helper.make_node("Cast", [flat], [f"{flat}.cast"], name=f"{flat}.cast")
        cast.attribute.extend(casts[0].attribute)
        made.append(cast)
        flat = cast.output[0]
    made += [
        helper.make_node("DequantizeLinear", [name, flat], [table], name=table, axis=0),
        helper.make_node(
            "Gather", [table, lookup.input[1]], list(product.output), name=lookup.name
        ),
    ]
    gone = {output for node in (lookup, wide, scales, *casts, product) for output in node.output}
    rest = [node for node in graph.node if node.output[0] not in gone]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rest]
    del graph.node[:]
    graph.node.extend([*made, *copies])
    if all(tensor.name != _ALL for tensor in graph.initializer):
        graph.initializer.append(helper.make_tensor(_ALL, onnx.TensorProto.INT64, [1], [-1]))


def _reader(graph: onnx.GraphProto, value: str, op_type: str) -> onnx.NodeProto:
    """Return the one node that reads a value.

    Raises:
        GraphError: There is not exactly one, or it is another operator.
    """
    readers: list[onnx.NodeProto] = [node for node in graph.node if value in node.input]
    if len(readers) != 1 or readers[0].op_type != op_type:
        found = ", ".join(node.op_type for node in readers) or "nothing"
        raise GraphError(f"{value} is read by {found}, not by one {op_type}")
    return readers[0]
