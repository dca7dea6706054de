"""The linears of an exported graph: which MatMul and Gemm multiply by a constant matrix.

Optimum names nodes by the module they come from (``/model/layers.0/mlp/down_proj/MatMul``), which
gives a linear the name it has in the checkpoint, less a leading ``model.`` in some families.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from edgekit.contracts import optimum_io
from edgekit.errors import GraphError

Float32Array = npt.NDArray[np.float32]
_OPERATOR = re.compile(r"/(MatMul|Gemm)(_\d+)?$")


@dataclass(frozen=True, slots=True)
class ExportedLinear:
    """A multiplication by a constant matrix.

    Attributes:
        name: ``model.layers.0.mlp.down_proj``; unique in the graph.
        node: The MatMul or Gemm.
        weight: Initializer that holds the matrix.
        transposed: The initializer is [N, K] rather than [K, N].
        is_head: It makes the logits.
    """

    name: str
    node: onnx.NodeProto
    weight: str
    transposed: bool
    is_head: bool


class MatrixRows:
    """An initializer as a ``LazyTensor``: rows of the weight [N, K], as a checkpoint has it."""

    def __init__(self, name: str, matrix: Float32Array, *, transposed: bool) -> None:
        self.name = name
        self._rows = matrix if transposed else matrix.T
        self.shape: tuple[int, ...] = self._rows.shape
        self.stored_bytes = int(matrix.nbytes)

    def rows(self, start: int, stop: int) -> Float32Array:
        """Return rows ``start:stop``, float32 [stop - start, K], C-contiguous."""
        return np.ascontiguousarray(self._rows[start:stop], np.float32)


def find_linears(graph: onnx.GraphProto) -> tuple[ExportedLinear, ...]:
    """Return the linears of a graph in execution order.

    Raises:
        GraphError: None makes the logits.
    """
    makers = {output: node for node in graph.node for output in node.output}
    matrices = {
        tensor.name
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    found = [
        (node, *source)
        for node in graph.node
        if node.op_type in {"MatMul", "Gemm"}
        and (source := _matrix(node, makers, matrices)) is not None
    ]
    head = _find_head([node for node, _, _ in found], makers)
    names = _unique([_scope(node) for node, _, _ in found])
    return tuple(
        ExportedLinear(name, node, weight, transposed, node.output[0] == head)
        for name, (node, weight, transposed) in zip(names, found, strict=True)
    )


def _matrix(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], matrices: set[str]
) -> tuple[str, bool] | None:
    """Follow a right side to its initializer; returns that and whether it is [N, K]."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
        return None
    transposed, value = bool(attributes.get("transB", 0)), node.input[1]
    while value not in matrices:
        maker = makers.get(value)
        if maker is None or maker.op_type not in {"Identity", "Transpose"}:
            return None
        if maker.op_type == "Transpose":
            transposed = not transposed
        value = maker.input[0]
    return value, transposed


def _find_head(linears: Sequence[onnx.NodeProto], makers: Mapping[str, onnx.NodeProto]) -> str:
    """Return the output of the linear that the logits come from, nearest first."""
    known = {node.output[0] for node in linears}
    waiting, seen = [optimum_io.LOGITS], set()
    while waiting:
        value = waiting.pop(0)
        if value in known:
            return value
        if value in makers and value not in seen:
            seen.add(value)
            waiting.extend(makers[value].input)
    raise GraphError(
        "no MatMul by a constant matrix makes the logits of the exported graph",
        "This family cannot be quantized after its export",
    )


def _scope(node: onnx.NodeProto) -> str:
    name = _OPERATOR.sub("", node.name).strip("/").replace("/", ".")
    return name or node.output[0]


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names, a repeated one with its count appended."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        result.append(f"{name}.{count}" if count else name)
    return result
