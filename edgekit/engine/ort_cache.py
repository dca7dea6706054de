"""Key/value caches for ONNX Runtime: one buffer for good, attended in tiers of capacity.

The graph attends over a cache's whole width, and slicing it would be a copy, so a short context
wants a narrow cache. Each layer's keys (and values) have one buffer of the largest capacity; a
tier lays the slots out anew at its start, ``[slots, Hkv, C, D]`` with a smaller C, and a change of
tier moves the rows in use. So memory is known from the start, growing allocates nothing, and a
shape keeps its addresses, which a captured CUDA graph needs. A slot is a contiguous part of a
tier: prefill binds one slot, decode the leading ones.

Rows not in use hold zeros or finite numbers of earlier sequences, both harmless where the mask is
False; numbers that are not finite never stay (``zero``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.errors import EngineError
from edgekit.units import format_bytes

FIRST_TIER = 256
"""Smallest capacity where tiers double."""
TIERS_TO_A_DOUBLING = {"cpu": 8, "cuda": 1}
"""On a CPU attention costs what it spans and moving rows is cheap. On CUDA each tier is a graph to
capture and its rows move through main memory."""
ROW_MULTIPLE = 64
"""The last tier's capacity is a multiple of this; attention kernels like aligned mask rows."""


class _Buffer(Protocol):
    """Flat memory of one layer's keys or values; places and counts are elements."""

    address: int

    def move(self, target: int, source: int, count: int) -> None: ...

    def zero(self, start: int, count: int) -> None: ...


class KeyValueCache:
    """The caches of all layers and slots, at one tier at a time.

    Args:
        session: The ONNX Runtime session they are for.
        layers: Number of layers; each has a key and a value buffer.
        shape: [slots, Hkv, C, D] of the largest tier.
        dtype: Activation type.
        device: ``cpu`` or ``cuda``.
        capacity: C of the first tier.

    Raises:
        EngineError: They do not fit the memory of the machine.
    """

    def __init__(
        self,
        session: Any,
        layers: int,
        shape: tuple[int, int, int, int],
        dtype: npt.DTypeLike,
        device: str,
        capacity: int,
    ) -> None:
        self.slots, self.heads, _, self.dim = shape
        self.dtype = np.dtype(dtype)
        self.capacity = capacity
        count = math.prod(shape)
        try:
            self._buffers: list[_Buffer] = [
                HostBuffer(count, self.dtype)
                if device == "cpu"
                else DeviceBuffer(count, self.dtype, device, session)
                for _ in range(2 * layers)
            ]
        except (MemoryError, ValueError) as error:  # ValueError: beyond what an address can be
            size = format_bytes(2 * layers * count * self.dtype.itemsize)
            raise EngineError(
                f"{size} of caches do not fit this machine's memory",
                "Build the bundle with a smaller --max-context",
            ) from error

    def shape(self, slots: int) -> tuple[int, int, int, int]:
        """Return the shape of ``slots`` slots at the present tier."""
        return (slots, self.heads, self.capacity, self.dim)

    def pointer(self, index: int, slot: int) -> int:
        """Return the address of a slot in buffer ``index`` at the present tier."""
        return self._buffers[index].address + self._at(slot, 0) * self.dtype.itemsize

    def resize(self, capacity: int, lengths: Sequence[int]) -> None:
        """Change the tier, keeping the first ``lengths[slot]`` rows of each slot."""
        if capacity == self.capacity:
            return
        blocks = [
            (slot, head, min(lengths[slot], capacity) * self.dim)
            for slot in range(self.slots)
            for head in range(self.heads)
            if lengths[slot]
        ]
        if capacity > self.capacity:
            blocks.reverse()  # upward moves from the last block on overwrite nothing still needed
        for buffer in self._buffers:
            for slot, head, count in blocks:
                block = (slot * self.heads + head) * self.dim
                buffer.move(block * capacity, block * self.capacity, count)
        self.capacity = capacity

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copy the first rows of one slot to another."""
        for buffer in self._buffers:
            for head in range(self.heads):
                offset = head * self.capacity * self.dim
                start, end = self._at(source, 0) + offset, self._at(target, 0) + offset
                buffer.move(end, start, rows * self.dim)

    def zero(self, slots: Sequence[int]) -> None:
        """Zero whole slots: a NaN left in a masked row would still poison the output."""
        for buffer in self._buffers:
            for slot in slots:
                buffer.zero(self._at(slot, 0), self.heads * self.capacity * self.dim)

    def _at(self, slot: int, row: int) -> int:
        return (slot * self.heads * self.capacity + row) * self.dim


class HostBuffer:
    """A buffer in main memory; the system hands out its zeroed pages when they are touched."""

    def __init__(self, count: int, dtype: np.dtype[Any]) -> None:
        self.array = np.zeros(count, dtype)
        self.address = self.array.ctypes.data

    def move(self, target: int, source: int, count: int) -> None:
        """Copy ``count`` elements; the places may overlap."""
        self.array[target : target + count] = self.array[source : source + count]

    def zero(self, start: int, count: int) -> None:
        """Zero ``count`` elements."""
        self.array[start : start + count] = 0


class DeviceBuffer:
    """A buffer on an accelerator, moved through main memory (a tier changes a few times)."""

    def __init__(self, count: int, dtype: np.dtype[Any], device: str, session: Any) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        self._dtype, self._device = dtype, device
        self._value = ort.OrtValue.ortvalue_from_numpy(np.zeros(count, dtype), device, 0)
        self._views = session.io_binding()
        self.address: int = self._value.data_ptr()

    def move(self, target: int, source: int, count: int) -> None:
        """Copy ``count`` elements; the places may overlap."""
        if target != source:
            self._view(target, count).update_inplace(np.array(self._view(source, count).numpy()))

    def zero(self, start: int, count: int) -> None:
        """Zero ``count`` elements."""
        self._view(start, count).update_inplace(np.zeros(count, self._dtype))

    def _view(self, start: int, count: int) -> Any:
        """Return part of the buffer as an OrtValue: an output bound to an address is one."""
        where = self.address + start * self._dtype.itemsize
        name = engine_io.present_key(0)
        self._views.bind_output(name, self._device, 0, self._dtype.type, (count,), where)
        return self._views.get_outputs()[0]


def tier_for(rows: int, max_context: int, steps: int) -> int:
    """Return the capacity for ``rows`` rows.

    There is always one row more than asked for, so that an idle slot in a batch has a row to
    write to that no position reads.

    Args:
        rows: At most ``max_context``.
        max_context: Tokens of the largest tier.
        steps: Tiers to every doubling, a power of two; with 8 the capacity is at most an eighth
            (or 64 rows) more than it must be.
    """
    octave = 1 << rows.bit_length()  # the power of two above rows
    step = max(octave // (2 * steps), ROW_MULTIPLE)
    tier = -(-(rows + 1) // step) * step
    last = -(-(max_context + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    return min(max(tier, FIRST_TIER // steps), last)
