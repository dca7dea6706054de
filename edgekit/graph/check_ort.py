"""Checks of a written graph of the ``ort`` dialect: valid, and every linear as planned.

Its operators are ONNX Runtime's, which the ONNX checker passes over, and most of its weights are
made at load. So what is compared with the plan is what they are made from, and how the nodes read
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from edgekit.contracts import derived
from edgekit.contracts.derived import DerivedTensor, derived_path, parse_derived
from edgekit.errors import BundleError, GraphError
from edgekit.graph.builder import derived_tensors
from edgekit.graph.check import GraphReport, check_codes
from edgekit.graph.lowering_ort import DOMAIN
from edgekit.graph.weights import codes_name, dense_name, scales_name
from edgekit.models.config import Linear, ModelConfig, all_linears
from edgekit.quant.scheme import QuantScheme

OPERATORS = {"GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization"}


def check_ort_graph(
    path: Path, config: ModelConfig, schemes: Mapping[str, QuantScheme | None]
) -> GraphReport:
    """Check a graph on disk, its external data and its list of derived weights beside it.

    Raises:
        GraphError: It is not valid, a linear is not quantized as planned, or the list beside it
            is not the graph's.
        BundleError: The list cannot be read.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        _check_valid(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        said = " ".join(str(error).split())
        raise GraphError(f"{path.name} is not valid ONNX: {said}") from error
    made = {tensor.name: tensor for tensor in derived_tensors(model)}
    _check_list(path, made)
    for tensor in model.graph.initializer:
        _check_stored(path, tensor, made)
    nodes = model.graph.node
    census = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes)
    known = {f"{DOMAIN}::{name}" for name in OPERATORS}
    foreign = sorted(name for name in census if "::" in name and name not in known)
    if foreign:
        raise GraphError(f"{path.name} has the operator {foreign[0]}, which is not of the dialect")
    opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    linears = _check_linears(model.graph, made, config, schemes)
    return GraphReport(opset, dict(sorted(census.items())), linears)


def _check_valid(model: onnx.ModelProto) -> None:
    """Run the ONNX checker on the graph alone: it looks for files that are made at load."""
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.initializer[:]
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            shape = list(tensor.dims)
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
            alone.graph.input.append(value)
        else:
            alone.graph.initializer.append(tensor)
    onnx.checker.check_model(alone)
    onnx.shape_inference.infer_shapes(alone, check_type=True, strict_mode=True)


def _check_list(path: Path, made: Mapping[str, DerivedTensor]) -> None:
    """Compare the graph's derived weights with the list that sessions read."""
    beside = path.parent / derived_path(path.name)
    try:
        listed = parse_derived(beside.read_bytes(), beside.name)
    except OSError as error:
        raise BundleError(f"cannot read {beside}: {error.strerror}") from error
    if {tensor.name: tensor for tensor in listed} != made or len(listed) != len(made):
        raise GraphError(f"{beside.name} does not list what {path.name} reads")


def _check_stored(path: Path, tensor: onnx.TensorProto, made: Mapping[str, DerivedTensor]) -> None:
    """Refuse an initializer whose file is not there."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.name in made:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not (path.parent / entries.get("location", "")).is_file():
        raise GraphError(f"{path.name} is not valid ONNX: {tensor.name} has no file")


def _check_linears(
    graph: onnx.GraphProto,
    made: Mapping[str, DerivedTensor],
    config: ModelConfig,
    schemes: Mapping[str, QuantScheme | None],
) -> dict[str, int]:
    makers = {output: node for node in graph.node for output in node.output if output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    linears = {linear.name: linear for linear in all_linears(config)}
    seen: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            names = _check_nbits(node, made, linears, schemes)
        elif node.op_type in {"MatMul", "Gemm"}:
            names = [_check_product(node, makers, stored, linears, schemes)]
        else:
            continue
        seen.update(names)
    for name in linears:
        if seen[name] != 1:
            raise GraphError(f"{name} should be multiplied by once, not {seen[name]} times")
    labels = Counter("dense" if x is None else x.label for x in map(schemes.get, linears))
    return dict(sorted(labels.items()))


def _check_nbits(
    node: onnx.NodeProto,
    made: Mapping[str, DerivedTensor],
    linears: Mapping[str, Linear],
    schemes: Mapping[str, QuantScheme | None],
) -> list[str]:
    """Check a MatMulNBits against the plan; return the linears it multiplies by."""
    codes, scales = (made.get(name) for name in node.input[1:3])
    if codes is None or scales is None or codes.kind != derived.CODES:
        raise GraphError(f"{node.name} multiplies by {node.input[1]}, which is not made of codes")
    suffix = codes_name("")
    names = [source.removesuffix(suffix) for source in codes.sources]
    wanted = scales.kind == derived.SCALES and list(scales.sources) == list(map(scales_name, names))
    if not wanted or any(name not in linears for name in names):
        raise GraphError(f"{node.name} has codes and scales that do not belong together")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for name in names:
        scheme = schemes[name]
        if scheme is None:
            raise GraphError(f"{name} is planned as dense but multiplied by codes")
        _check_attributes(name, scheme, linears[name], attributes)
    if len(node.input) > 3 and node.input[3]:
        raise GraphError(f"{names[0]} has zero points of its own")
    width = sum(linears[name].out_features for name in names)
    if attributes.get("N") != width:
        raise GraphError(f"{node.name} has {attributes.get('N')} outputs, its linears {width}")
    blocks = -(-attributes["K"] // attributes["block_size"])
    shape = (width, blocks, attributes["block_size"] * attributes["bits"] // 8)
    if codes.shape != shape or scales.shape != shape[:2]:
        raise GraphError(f"{codes.name} is {list(codes.shape)}, not {list(shape)}")
    return names


def _check_attributes(
    name: str, scheme: QuantScheme, linear: Linear, attributes: Mapping[str, Any]
) -> None:
    planned = f"{name} is planned as {scheme.label}"
    if attributes.get("bits") != scheme.bits:
        raise GraphError(f"{planned} but multiplied by {attributes.get('bits')}-bit codes")
    size = attributes.get("block_size", 0)
    if size < 1 or scheme.group_size % size:  # of the blocks of a group, each has its scale
        raise GraphError(f"{planned} but its blocks are of {size}")
    if attributes.get("K") != linear.in_features:
        raise GraphError(f"{planned} but multiplied over {attributes.get('K')} channels")


def _check_product(
    node: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    stored: Mapping[str, onnx.TensorProto],
    linears: Mapping[str, Linear],
    schemes: Mapping[str, QuantScheme | None],
) -> str:
    """Check a MatMul by a dense weight, or by codes that MatMulNBits does not take."""
    value: str = node.input[1]
    source = value
    while source in makers and makers[source].op_type in {"Cast", "DequantizeLinear"}:
        value, source = source, makers[source].input[0]
    name = source.removesuffix(codes_name("")).removesuffix(dense_name(""))
    scheme = schemes.get(name)
    wanted = dense_name(name) if scheme is None else codes_name(name)
    if name not in linears or source != wanted or source not in stored:
        raise GraphError(f"{node.name} multiplies by {source}, which is no linear's weight")
    if scheme is not None:
        check_codes(name, stored[source], makers[value], scheme)
    shape = (linears[name].in_features, linears[name].out_features)
    if tuple(stored[source].dims) != shape:
        raise GraphError(f"{source} is {list(stored[source].dims)}, not {list(shape)}")
    return name
