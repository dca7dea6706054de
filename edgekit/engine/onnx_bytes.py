"""Writes a small ONNX graph without the onnx package, which machines that run bundles lack.

A graph is written as a model of its own, or as what joins another model: appended to that model's
bytes, its nodes, constants, inputs and outputs follow those that are there. Parsers merge a message
that occurs twice, and append what is repeated in it.

The wire format of protocol buffers is a list of fields, each a number and a varint or a string of
bytes. Source: onnx.proto of ONNX 1.17 for the fields' numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

IR_VERSION = 8
"""ONNX 1.10's, which goes with opset 17."""
OPSET = 17
"""Reductions but ``ReduceSum`` still have their axes as an attribute."""
FLOAT32, INT64, FLOAT16 = 1, 7, 10
"""``TensorProto.DataType``."""
_INT, _INTS = 2, 7
"""``AttributeProto.AttributeType``."""

Shape = Sequence[int | str]
"""Dimensions by number or name."""


@dataclass(slots=True)
class SmallGraph:
    """Collects nodes in execution order.

    Attributes:
        name: Of the graph; its constants' names begin with it.
    """

    name: str
    _nodes: list[bytes] = field(default_factory=list)
    _constants: dict[str, bytes] = field(default_factory=dict)
    _inputs: list[bytes] = field(default_factory=list)
    _outputs: list[bytes] = field(default_factory=list)

    def input(self, name: str, elem_type: int, shape: Shape) -> str:
        """Declare an input; returns its name."""
        self._inputs.append(_value_info(name, elem_type, shape))
        return name

    def output(self, name: str, elem_type: int, shape: Shape) -> None:
        """Declare a node's output as one of the graph's."""
        self._outputs.append(_value_info(name, elem_type, shape))

    def ints(self, *values: int) -> str:
        """Return the name of a constant int64 vector."""
        name = f"{self.name}/ints_{'_'.join(str(value) for value in values)}"
        self._constants[name] = _int64_tensor(name, values, scalar=False)
        return name

    def int_scalar(self, value: int) -> str:
        """Return the name of a constant int64 without dimensions."""
        name = f"{self.name}/int_{value}"
        self._constants[name] = _int64_tensor(name, (value,), scalar=True)
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        **attributes: int | Sequence[int],
    ) -> str:
        """Append a node; returns its first output's name."""
        node = b"".join(_bytes(1, name.encode()) for name in inputs)
        node += b"".join(_bytes(2, name.encode()) for name in outputs)
        node += _bytes(3, outputs[0].encode()) + _bytes(4, op.encode())
        node += b"".join(_bytes(5, _attribute(*item)) for item in attributes.items())
        self._nodes.append(node)
        return outputs[0]

    def serialize(self) -> bytes:
        """Return the ``ModelProto``."""
        graph = self._fields() + _bytes(2, self.name.encode())
        opset = _bytes(1, b"") + _int(2, OPSET)
        return _int(1, IR_VERSION) + _bytes(2, b"edgekit") + _bytes(7, graph) + _bytes(8, opset)

    def joined_to(self, model: bytes) -> bytes:
        """Return a serialized model with this graph after its own, which it may read.

        The nodes are then of the model's opset. Names must differ from the model's.
        """
        return model + _bytes(7, self._fields())

    def _fields(self) -> bytes:
        """Return the repeated fields of the ``GraphProto``."""
        graph = b"".join(_bytes(1, node) for node in self._nodes)
        graph += b"".join(_bytes(5, constant) for constant in self._constants.values())
        graph += b"".join(_bytes(11, value) for value in self._inputs)
        return graph + b"".join(_bytes(12, value) for value in self._outputs)


def _varint(value: int) -> bytes:
    """Return a number as a varint; negative ones in two's complement of 64 bits."""
    rest, parts = value & (2**64 - 1), bytearray()
    while rest > 0x7F:
        parts.append(rest & 0x7F | 0x80)
        rest >>= 7
    parts.append(rest)
    return bytes(parts)


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    start = _bytes(1, name.encode())
    if isinstance(value, int):
        return start + _int(3, value) + _int(20, _INT)
    return start + b"".join(_int(8, item) for item in value) + _int(20, _INTS)


def _int64_tensor(name: str, values: Sequence[int], *, scalar: bool) -> bytes:
    dims = b"" if scalar else _int(1, len(values))
    data = np.array(values, "<i8").tobytes()
    return dims + _int(2, INT64) + _bytes(8, name.encode()) + _bytes(9, data)


def _value_info(name: str, elem_type: int, shape: Shape) -> bytes:
    dims = b""
    for size in shape:
        dim = _bytes(2, size.encode()) if isinstance(size, str) else _int(1, size)
        dims += _bytes(1, dim)
    tensor = _int(1, elem_type) + _bytes(2, dims)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))
