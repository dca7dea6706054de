"""A thin typed builder of one ONNX graph: names, nodes, initializers, opset.

It knows nothing of models. Weights are always external data, so the proto stays small; only
integer constants (shapes, axes) and scalars are stored inline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.contracts.derived import DerivedTensor
from edgekit.errors import GraphError
from edgekit.graph.weights import GraphTensor

ActivationDtype = Literal["float16", "float32"]

ELEM_TYPE: dict[str, int] = {
    "int4": TensorProto.INT4,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
}

IR_VERSION = 11
"""Oldest IR that carries opset 24's types; newer IR versions shut out older runtimes."""


DERIVED_LOCATION = "made-at-load"
"""Stands where a derived initializer's file would; there is none."""
KIND_KEY, SOURCES_KEY = "edgekit.kind", "edgekit.sources"
"""Metadata of a derived initializer; its sources are separated by newlines."""


def derived_tensors(model: onnx.ModelProto) -> tuple[DerivedTensor, ...]:
    """Return the initializers of a graph that are made at load."""
    dtypes = {kind: name for name, kind in ELEM_TYPE.items()}
    found = []
    for tensor in model.graph.initializer:
        notes = {note.key: note.value for note in tensor.metadata_props}
        if KIND_KEY in notes:
            sources = tuple(notes.get(SOURCES_KEY, "").split("\n"))
            dtype = dtypes.get(tensor.data_type, "")
            found.append(
                DerivedTensor(tensor.name, notes[KIND_KEY], dtype, tuple(tensor.dims), sources)
            )
    return tuple(found)


class GraphBuilder:
    """Collects nodes in execution order and makes a ``ModelProto`` of them.

    Args:
        name: Graph name.
        opset: Version of the default operator domain.
        domains: Further operator domains and their versions.
    """

    def __init__(self, name: str, opset: int, domains: Mapping[str, int] | None = None) -> None:
        self.name = name
        self.opset = opset
        self._domains = dict(domains or {})
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._values: set[str] = set()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare a graph input; strings are symbolic dimensions."""
        self._claim(name)
        self._inputs.append(helper.make_tensor_value_info(name, ELEM_TYPE[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a value that a node already makes as a graph output."""
        if name not in self._values:
            raise GraphError(f"graph output {name} is made by no node")
        self._outputs.append(helper.make_tensor_value_info(name, ELEM_TYPE[dtype], shape))

    def node(
        self, op_type: str, inputs: Sequence[str], output: str, *, domain: str = "", **attrs: Any
    ) -> str:
        """Append a node with one output, named after it; returns the output's name."""
        return self.node_many(op_type, inputs, (output,), domain=domain, **attrs)[0]

    def node_many(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attrs: Any,
    ) -> tuple[str, ...]:
        """Append a node with several outputs; returns their names.

        Raises:
            GraphError: An input is not made by an earlier node, or an output name is taken.
        """
        for name in inputs:
            if name and name not in self._values:
                raise GraphError(f"{op_type} reads {name}, which nothing before it makes")
        for name in filter(None, outputs):  # an empty name is an output that is not wanted
            self._claim(name)
        node = helper.make_node(op_type, inputs, outputs, name=outputs[0], domain=domain, **attrs)
        self._nodes.append(node)
        return tuple(outputs)

    def ints(self, values: Sequence[int]) -> str:
        """Return an inline int64 vector; equal vectors share one initializer."""
        name = "ints." + "_".join(str(v) for v in values)
        return self._inline(name, np.array(values, dtype=np.int64))

    def int_scalar(self, value: int) -> str:
        """Return an inline int64 scalar."""
        return self._inline(f"int.{value}", np.array(value, dtype=np.int64))

    def has(self, name: str) -> bool:
        """Whether a value of that name exists already."""
        return name in self._values

    def scalar(self, value: float, dtype: ActivationDtype) -> str:
        """Return an inline scalar of the given type."""
        return self._inline(f"scalar.{dtype}.{value!r}", np.array(value, dtype=dtype))

    def weight(self, tensor: GraphTensor) -> str:
        """Return an initializer whose bytes are external data; the same one is shared."""
        if tensor.name not in self._initializers:
            self._claim(tensor.name)
            proto = TensorProto(
                name=tensor.name,
                data_type=ELEM_TYPE[tensor.dtype],
                dims=tensor.shape,
                data_location=TensorProto.EXTERNAL,
            )
            proto.external_data.add(key="location", value=tensor.location)
            proto.external_data.add(key="offset", value="0")
            proto.external_data.add(key="length", value=str(tensor.size_bytes))
            self._initializers[tensor.name] = proto
        return tensor.name

    def derived(self, tensor: DerivedTensor) -> str:
        """Return an initializer that the session makes at load; no file holds its bytes.

        How it is made stands in its metadata, from which the bundle's list is written.
        """
        if tensor.name not in self._initializers:
            self._claim(tensor.name)
            proto = TensorProto(
                name=tensor.name,
                data_type=ELEM_TYPE[tensor.dtype],
                dims=tensor.shape,
                data_location=TensorProto.EXTERNAL,
            )
            proto.external_data.add(key="location", value=DERIVED_LOCATION)
            proto.metadata_props.add(key=KIND_KEY, value=tensor.kind)
            proto.metadata_props.add(key=SOURCES_KEY, value="\n".join(tensor.sources))
            self._initializers[tensor.name] = proto
        return tensor.name

    def model(self, producer_version: str) -> onnx.ModelProto:
        """Return the finished model; two calls give the same bytes."""
        graph = helper.make_graph(
            self._nodes,
            self.name,
            self._inputs,
            self._outputs,
            initializer=[self._initializers[k] for k in sorted(self._initializers)],
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(d, v) for d, v in sorted(self._domains.items())]
        return helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=IR_VERSION,
            producer_name="edgekit",
            producer_version=producer_version,
        )

    def _inline(self, name: str, array: np.ndarray[Any, Any]) -> str:
        if name not in self._initializers:
            self._claim(name)
            self._initializers[name] = onnx.numpy_helper.from_array(array, name)
        return name

    def _claim(self, name: str) -> None:
        if name in self._values:
            raise GraphError(f"the graph already has a value named {name}")
        self._values.add(name)
