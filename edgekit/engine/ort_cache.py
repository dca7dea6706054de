"""Key/value caches for ONNX Runtime, in tiers of capacity.

The graph attends over a cache's whole width, and slicing it would be a copy, so caches start small
and grow by doubling; a copy per doubling is all it costs. One buffer a layer holds all slots, a
slot being a contiguous part, so prefill binds one slot's part and decode the leading slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FIRST_TIER = 256


class CacheBuffers:
    """The caches of all layers at one capacity.

    Args:
        layers: Number of layers; each has a key and a value buffer.
        shape: [slots, Hkv, C, D].
        dtype: Activation type.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self, layers: int, shape: tuple[int, int, int, int], dtype: npt.DTypeLike, device: str
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._device = device
        # Zeros, because a NaN left in a masked row would still poison the output.
        self._arrays = [np.zeros(shape, dtype) for _ in range(2 * layers)]
        self._values = [ort.OrtValue.ortvalue_from_numpy(a, device, 0) for a in self._arrays]
        if device != "cpu":
            self._arrays = []

    @property
    def capacity(self) -> int:
        """Rows a slot holds."""
        return self.shape[2]

    def pointer(self, index: int, slot: int) -> int:
        """Return the address of a slot's part of buffer ``index``."""
        slots, heads, capacity, dim = self.shape
        del slots
        address: int = self._values[index].data_ptr()
        return address + slot * heads * capacity * dim * self.dtype.itemsize

    def copy_from(self, other: CacheBuffers, lengths: npt.NDArray[np.int64]) -> None:
        """Take over the first ``lengths`` rows of every slot of smaller caches."""
        rows = int(lengths.max(initial=0))
        if rows == 0:
            return
        for index, value in enumerate(self._values):
            if self._device == "cpu":
                self._arrays[index][:, :, :rows] = other._arrays[index][:, :, :rows]
            else:
                host = np.zeros(self.shape, self.dtype)
                host[:, :, :rows] = other._values[index].numpy()[:, :, :rows]
                value.update_inplace(host)

    def zero(self, slots: list[int]) -> None:
        """Zero whole slots."""
        for index, value in enumerate(self._values):
            if self._device == "cpu":
                self._arrays[index][slots] = 0
            else:
                host: Any = value.numpy()
                host[slots] = 0
                value.update_inplace(host)


def tier_for(rows: int, max_context: int) -> int:
    """Return the capacity for ``rows`` rows: a power of two from 256, or just above the context.

    One row more than ``max_context`` is kept, so that an idle slot in a batch always has a row to
    write to that no position reads.
    """
    tier = FIRST_TIER
    while tier < rows + 1:
        tier *= 2
    return min(tier, max_context + 1)
