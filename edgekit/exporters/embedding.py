"""The token embedding of an exported graph: rows looked up in float16 or int8, then widened."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx

from edgekit.bundle.writer import BundleWriter
from edgekit.errors import CheckpointError, QuantizationError
from edgekit.exporters.graph_edit import GraphEdit, readers
from edgekit.graph.weights import codes_name, scales_name
from edgekit.quant.rtn import quantize_rows
from edgekit.recipe import EmbeddingType

STRIP_ROWS = 2048
FLOAT16_OVERFLOW = 65520.0
"""Smallest magnitude that rounds to infinity in float16."""

Float32Array = npt.NDArray[np.float32]


def is_embedding(graph: onnx.GraphProto, tensor: onnx.TensorProto, vocab_size: int) -> bool:
    """Whether a tensor is [vocab_size, H] float32, and only looked up by row."""
    if list(tensor.dims[:1]) != [vocab_size] or len(tensor.dims) != 2:
        return False
    found = readers(graph, tensor.name)
    return tensor.data_type == onnx.TensorProto.FLOAT and all(
        node.op_type == "Gather"
        and node.input[0] == tensor.name
        and all(attribute.i == 0 for attribute in node.attribute)
        for node in found
    )


def store_embedding(
    edit: GraphEdit, name: str, table: Float32Array, dtype: EmbeddingType, writer: BundleWriter
) -> None:
    """Store an embedding [V, H] and let its Gather nodes look up what was stored.

    Raises:
        QuantizationError: A value does not fit float16.
        CheckpointError: A value is not finite.
    """
    gathers = readers(edit.graph, name)
    shape = (table.shape[0], table.shape[1])
    if dtype == "float16":
        rows = (strip.astype(np.float16).data for strip in _strips(name, table))
        stored = edit.blob(writer.add_tensor(name, "dense", "float16", shape, rows))
        for node in gathers:
            _look_up(edit, node, stored)
        return
    module = name.removesuffix(".weight")
    scales = np.empty((shape[0], 1), np.float16)
    codes = _codes(name, table, scales)
    names = codes_name(module), scales_name(module)
    first = edit.blob(writer.add_tensor(names[0], "codes", "int8", shape, codes, "w8-row"))
    rows_scales = writer.add_tensor(
        names[1], "scales", "float16", scales.shape, [scales.data], "w8-row"
    )
    second = edit.blob(rows_scales)
    for node in gathers:
        _look_up_scaled(edit, node, first, second)


def _look_up(edit: GraphEdit, node: onnx.NodeProto, stored: str) -> None:
    """Cast the rows of a Gather."""
    output, rows = node.output[0], f"{node.output[0]}.rows"
    node.input[0], node.output[0] = stored, rows
    edit.node("Cast", [rows], output, after=rows, to=onnx.TensorProto.FLOAT)


def _look_up_scaled(edit: GraphEdit, node: onnx.NodeProto, codes: str, scales: str) -> None:
    """Multiply the rows of a Gather by their scale."""
    output, rows = node.output[0], f"{node.output[0]}.rows"
    node.input[0], node.output[0] = codes, rows
    scale = edit.node("Gather", [scales, node.input[1]], f"{output}.row_scales", after=rows)
    wide = [edit.widened(value, after=rows) for value in (rows, scale)]
    edit.node("Mul", wide, output, after=rows)


def _codes(name: str, table: Float32Array, scales: npt.NDArray[np.float16]) -> Iterator[memoryview]:
    """Yield int8 codes of strips of rows, and fill in their scales [V, 1]."""
    start = 0
    for strip in _strips(name, table):
        codes, stored = quantize_rows(name, strip, first_row=start)
        scales[start : start + len(strip)] = stored
        start += len(strip)
        yield codes.data


def _strips(name: str, table: Float32Array) -> Iterator[Float32Array]:
    for start in range(0, len(table), STRIP_ROWS):
        strip = np.ascontiguousarray(table[start : start + STRIP_ROWS], np.float32)
        require_float16(name, strip)
        yield strip


def require_float16(name: str, values: Float32Array) -> None:
    """Refuse what float16 cannot hold.

    Raises:
        QuantizationError: A value is too large.
        CheckpointError: A value is not finite.
    """
    if not np.abs(values).max() < FLOAT16_OVERFLOW:
        if np.isfinite(values).all():
            raise QuantizationError(f"{name} has values that float16 cannot hold")
        raise CheckpointError(
            f"{name} holds NaN or infinity", "The checkpoint is damaged: download it again"
        )
