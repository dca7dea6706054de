"""Changes of an exported graph, collected and then made at once.

Nodes and initializers of a protobuf must not move while others refer to them, so new ones are kept
aside until :meth:`GraphEdit.apply`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekit.bundle.layout import blob_location
from edgekit.contracts.manifest import TensorEntry
from edgekit.graph.builder import ELEM_TYPE

_PASSED_ON = {"Identity", "Transpose"}


class GraphEdit:
    """New nodes and initializers of one graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.entries: list[TensorEntry] = []
        self._first: list[onnx.NodeProto] = []
        self._after: dict[str, list[onnx.NodeProto]] = {}
        self._tensors: list[onnx.TensorProto] = []

    def blob(self, entry: TensorEntry) -> str:
        """Add an initializer whose bytes are a bundle's blob; returns its name."""
        tensor = onnx.TensorProto(name=entry.name, data_type=ELEM_TYPE[entry.dtype])
        tensor.dims.extend(entry.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        keys = {"location": blob_location(entry.sha256), "offset": "0"}
        for key, value in {**keys, "length": str(entry.size_bytes)}.items():
            tensor.external_data.add(key=key, value=value)
        self._tensors.append(tensor)
        self.entries.append(entry)
        return entry.name

    def inline(self, name: str, values: Any) -> str:
        """Add a small initializer that stays in the graph; returns its name."""
        self._tensors.append(numpy_helper.from_array(np.array(values), name))
        return name

    def node(
        self, op_type: str, inputs: Sequence[str], output: str, *, after: str = "", **attrs: Any
    ) -> str:
        """Add a node, first of all or after the node that makes ``after``; returns its output."""
        # Exporters may have named a node by what it makes; node names must be unique, too.
        node = helper.make_node(op_type, inputs, [output], name=f"edgekit/{output}", **attrs)
        (self._after.setdefault(after, []) if after else self._first).append(node)
        return output

    def widened(self, name: str, *, after: str = "") -> str:
        """Add a Cast to float32; returns its output."""
        return self.node("Cast", [name], f"{name}.float32", after=after, to=ELEM_TYPE["float32"])

    def apply(self) -> None:
        """Make the changes; initializers of the graph that were not added here are gone."""
        nodes = list(self._first)
        for node in self.graph.node:
            nodes += [node, *self._after.get(node.output[0], ())]
        read = _live(nodes, self.graph)
        kept = [node for node in nodes if not _is_idle(node, read)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(copies)
        self.graph.initializer.extend(tensor for tensor in self._tensors if tensor.name in read)


def read_initializers(graph: onnx.GraphProto) -> tuple[onnx.TensorProto, ...]:
    """Return the initializers that something still reads."""
    read = _live(list(graph.node), graph)
    return tuple(tensor for tensor in graph.initializer if tensor.name in read)


def readers(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    """Return the nodes that read a value, those included whose subgraphs do."""
    return [node for node in graph.node if value in _inputs(node)]


def _live(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> set[str]:
    """Return every value that is read, not counting nodes that pass on what nobody reads."""
    read = {output.name for output in graph.output}
    for node in reversed(nodes):
        if not _is_idle(node, read):
            read.update(_inputs(node))
    return read


def _is_idle(node: onnx.NodeProto, read: set[str]) -> bool:
    return node.op_type in _PASSED_ON and node.output[0] not in read


def _inputs(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, its subgraphs included."""
    return {*node.input, *(name for inner in _subgraphs(node) for name in _values(inner))}


def _values(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from _inputs(node)
    yield from (output.name for output in graph.output)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
