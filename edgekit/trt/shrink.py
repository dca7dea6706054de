"""Shortens a large graph for a compile check: a few true layers, and proof that the rest are alike.

Every decoder layer whose operators, types and shapes are those of another compiles to the same
kernels, so one of each kind is enough for a compile check, with the first and the last layer. The
equality is computed from the graph, node by node, never assumed. Of a shortened graph the token
embedding keeps its first rows only: looking rows up is the same for any number of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx

from edgekit.contracts import engine_io
from edgekit.contracts.manifest import BITS
from edgekit.errors import GraphError

EMBEDDING_ROWS = 1024
_LAYER = re.compile(r"(?:(?<=layers\.)|(?<=_key_)|(?<=_value_))\d+")
_STORED = {
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.FLOAT: "float32",
}


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A graph ready to be parsed.

    Attributes:
        model: The graph; its external data is where the whole one's is.
        layers: Decoder layers of the whole graph.
        kept: Those left in it.
        kinds: Number of kinds of layers; each has one among ``kept``.
        embedding_rows: Rows left of the token embedding.
        vocabulary: Rows it has.
    """

    model: onnx.ModelProto
    layers: int
    kept: tuple[int, ...]
    kinds: int
    embedding_rows: int
    vocabulary: int


def shrink(model: onnx.ModelProto) -> Shrunk:
    """Keep one layer of each kind, the first and the last, and some rows of the embedding.

    Args:
        model: A decoder that edgekit wrote, external data not loaded; it is changed.

    Raises:
        GraphError: Its layers do not follow one another as a decoder's.
    """
    layers = _Layers(model.graph)
    signatures = [layers.signature(index) for index in range(layers.count)]
    first_of_kind = {signature: layer for layer, signature in reversed([*enumerate(signatures)])}
    kept = tuple(sorted({0, layers.count - 1, *first_of_kind.values()}))
    layers.keep(kept)
    rows, vocabulary = _shorten_embedding(model.graph)
    _drop_unused_weights(model.graph)
    return Shrunk(model, layers.count, kept, len(first_of_kind), rows, vocabulary)


def whole(model: onnx.ModelProto) -> Shrunk:
    """Describe a graph that is compiled as it is."""
    layers = _Layers(model.graph)
    kinds = {layers.signature(index) for index in range(layers.count)}
    tables = [t.dims[0] for t in model.graph.initializer if t.name in _embeddings(model.graph)]
    rows = max(tables, default=0)
    return Shrunk(model, layers.count, tuple(range(layers.count)), len(kinds), rows, rows)


def stored_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of a graph's weights as they are stored."""
    return sum(
        _elements(tensor) * BITS[_STORED[tensor.data_type]] // 8
        for tensor in model.graph.initializer
        if tensor.data_type in _STORED
    )


def dense_bytes(model: onnx.ModelProto) -> int:
    """Return the stored bytes of the weights that a MatMul takes as they are, not dequantized."""
    makers = {output: node for node in model.graph.node for output in node.output}
    right = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    right |= {makers[n].input[0] for n in right if n in makers and makers[n].op_type == "Cast"}
    dense = [tensor for tensor in model.graph.initializer if tensor.name in right]
    return sum(_elements(t) * BITS[_STORED[t.data_type]] // 8 for t in dense)


def layer_of(name: str) -> int | None:
    """Return the decoder layer a value belongs to by its name; None outside of layers."""
    found = _LAYER.search(name)
    return None if found is None else int(found[0])


class _Layers:
    """The decoder layers of a graph, and the one value that passes from each to the next."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        layers = [layer_of(value.name) for value in graph.input]
        self.count = 1 + max((layer for layer in layers if layer is not None), default=-1)
        if self.count == 0:
            raise GraphError("the graph has no caches, so no decoder layers")
        self.makers = {output: node for node in graph.node for output in node.output}
        self.nodes: list[list[onnx.NodeProto]] = [[] for _ in range(self.count)]
        for node in graph.node:
            layer = layer_of(node.output[0])
            if layer is not None:
                self.nodes[layer].append(node)
        self.streams = [self._stream(layer) for layer in range(self.count)]

    @cached_property
    def weights(self) -> Mapping[str, onnx.TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def inputs(self) -> Mapping[str, onnx.ValueInfoProto]:
        """Graph inputs by name."""
        return {value.name: value for value in self.graph.input}

    def _stream(self, layer: int) -> str:
        """Return the value that enters a layer: made by the one before, or by the embedding."""
        if self.count == 1:
            return ""  # nothing will be cut
        read: set[str] = {
            name for node in self.nodes[layer] for name in node.input if name in self.makers
        }
        if layer:
            found = {name for name in read if layer_of(name) == layer - 1}
        else:
            shared = {n for nodes in self.nodes[1:] for node in nodes for n in node.input}
            found = {name for name in read - shared if layer_of(name) is None}
        strays = {n for n in read if layer_of(n) not in {None, layer, layer - 1}}
        if len(found) != 1 or strays:
            names = ", ".join(sorted(found | strays)) or "nothing"
            raise GraphError(
                f"decoder layer {layer} reads {names}, not one value of the layer before"
            )
        return found.pop()

    def signature(self, layer: int) -> tuple[Any, ...]:
        """Return what a layer compiles to: operators, wiring, types and shapes, no float values."""
        return tuple(
            (
                node.domain,
                node.op_type,
                tuple(sorted(_attribute(a) for a in node.attribute)),
                tuple(self._source(layer, name) for name in node.input),
                tuple(_LAYER.sub("#", name, count=1) for name in node.output),
            )
            for node in self.nodes[layer]
        )

    def _source(self, layer: int, name: str) -> tuple[Any, ...]:
        if name == self.streams[layer]:
            return ("stream",)
        if name in self.weights:
            tensor = self.weights[name]
            whole_numbers = tensor.data_type in {onnx.TensorProto.INT64, onnx.TensorProto.INT32}
            value = tensor.SerializeToString(deterministic=True) if whole_numbers else b""
            return ("weight", tensor.data_type, tuple(tensor.dims), value)
        if name in self.inputs and layer_of(name) is not None:
            kind = self.inputs[name].type.SerializeToString(deterministic=True)
            return ("input", _LAYER.sub("#", name, count=1), kind)
        return ("value", name if layer_of(name) is None else _LAYER.sub("#", name, count=1))

    def keep(self, kept: tuple[int, ...]) -> None:
        """Leave only some layers, each fed by the one kept before it."""
        for before, layer in itertools.pairwise(kept):
            self._replace(self.nodes[layer], self.streams[layer], self.streams[before + 1])
        dropped = set(range(self.count)) - set(kept)
        _filter(
            self.graph.node, (n for n in self.graph.node if layer_of(n.output[0]) not in dropped)
        )
        for values in (self.graph.input, self.graph.output):
            _filter(values, (value for value in values if layer_of(value.name) not in dropped))

    @staticmethod
    def _replace(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
        for node in nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new


def _attribute(attribute: onnx.AttributeProto) -> tuple[str, int, bytes]:
    """Return an attribute's name, type and value; a float's value decides no kernel."""
    is_float = attribute.type in {onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS}
    value = b"" if is_float else attribute.SerializeToString(deterministic=True)
    return (attribute.name, attribute.type, value)


def _embeddings(graph: onnx.GraphProto) -> set[str]:
    """Return the weights of which rows are looked up by token id, and nothing else is done."""
    uses: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.name in uses
        and all(
            node.op_type == "Gather" and list(node.input) == [tensor.name, engine_io.INPUT_IDS]
            for node in uses[tensor.name]
        )
    }


def _shorten_embedding(graph: onnx.GraphProto) -> tuple[int, int]:
    """Cut embedding tables to their first rows; returns the rows left and those there were."""
    names, rows, vocabulary = _embeddings(graph), 0, 0
    for tensor in graph.initializer:
        if tensor.name in names:
            vocabulary = tensor.dims[0]
            rows = tensor.dims[0] = min(vocabulary, EMBEDDING_ROWS)
            size = _elements(tensor) * BITS[_STORED[tensor.data_type]] // 8
            for entry in tensor.external_data:
                if entry.key == "length":
                    entry.value = str(size)
    return rows, vocabulary


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    _filter(graph.initializer, (tensor for tensor in graph.initializer if tensor.name in used))


def _filter(field: Any, kept: Iterable[Any]) -> None:
    """Replace a repeated field's messages by some of them."""
    rows = list(kept)
    copies = [type(row).FromString(row.SerializeToString()) for row in rows]
    del field[:]
    field.extend(copies)


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
