"""An exported ONNX graph on disk: opened, brought to edgekit's opset, its weights mapped.

The exporter's files are read as untrusted ones: external data must stand beside the graph and hold
what the graph says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import version_converter

from edgekit.errors import GraphError, first_line
from edgekit.graph.builder import IR_VERSION

OPSET = 21
"""The first opset with int4 and DequantizeLinear in blocks."""
_CONSTANT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A graph and where its weights are.

    Attributes:
        proto: The model, its weights not loaded.
        folder: Where its external data stands.
    """

    proto: onnx.ModelProto
    folder: Path

    def values(self, name: str) -> npt.NDArray[Any]:
        """Return an initializer; external data is mapped, not read.

        Raises:
            GraphError: Its bytes are not there.
        """
        tensor = next(t for t in self.proto.graph.initializer if t.name == name)
        return read_tensor(tensor, self.folder)


def open_exported(path: Path) -> ExportedGraph:
    """Open a graph and convert it to :data:`OPSET`.

    Raises:
        GraphError: It is not ONNX, or cannot be converted.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        version = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
        if version < OPSET:
            model = version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's and protobuf's exceptions share no base class
        raise GraphError(
            f"{path.name} cannot be read as ONNX opset {OPSET}: {first_line(error)}"
        ) from error
    model.ir_version = IR_VERSION
    exported = ExportedGraph(model, path.parent)
    _load_constants(model.graph, path.parent)
    _strip(model)
    return exported


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[Any]:
    """Return a tensor's values; external data is mapped read-only.

    Raises:
        GraphError: Its external data leaves the folder, or is not as long as it says.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        array: npt.NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return array
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = folder / location
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    offset, shape = int(entries.get("offset", 0)), tuple(tensor.dims)
    size = math.prod(shape) * dtype.itemsize
    plain = location == Path(location).name and path.is_file() and not path.is_symlink()
    if not plain or offset < 0 or offset + size > path.stat().st_size:
        raise GraphError(f"the exported graph's weights of {tensor.name} are not in {location!r}")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def _load_constants(graph: onnx.GraphProto, folder: Path) -> None:
    """Put the values of Constant nodes into the graph: they are no weights."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _load_constants(inner, folder)
            tensor = attribute.t
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                values = np.ascontiguousarray(read_tensor(tensor, folder))
                if values.nbytes > _CONSTANT_BYTES:
                    raise GraphError(f"{node.name} holds a constant of {values.nbytes} bytes")
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _strip(model: onnx.ModelProto) -> None:
    """Remove what would make two exports of the same model differ."""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
