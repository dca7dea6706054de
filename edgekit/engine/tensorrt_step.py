"""Device memory of a TensorRT session: caches, and one step's inputs and logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.step_inputs import MaskInputs
from edgekit.errors import EngineError
from edgekit.trt.runtime import Bytes, Context, Replay, Runtime, Shape

ALIGNMENT = 256
"""Bytes; that of CUDA's own allocations, and the least that TensorRT takes an address with
(``IExecutionContext::setTensorAddress``)."""


class DeviceCache:
    """Keys and values of all layers and slots: a buffer each of [slots, Hkv, C, D], zeroed.

    An engine of the ``standard`` dialect writes new rows into them itself; one of ``trt103`` gives
    the rows back, and :meth:`append` copies them there.

    Args:
        runtime: Whose memory it is.
        layers: Number of layers.
        shape: [slots, Hkv, C, D].
        dtype: Activation type.
        in_place: Whether the engine writes them.

    Raises:
        EngineError: Memory ran out, or slots do not begin where TensorRT takes an address.
    """

    def __init__(
        self,
        runtime: Runtime,
        layers: int,
        shape: tuple[int, int, int, int],
        dtype: np.dtype[Any],
        *,
        in_place: bool = True,
    ) -> None:
        self._runtime = runtime
        self.shape, self.dtype, self.in_place = shape, dtype, in_place
        self._slot_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._row_bytes = shape[3] * dtype.itemsize
        if shape[0] > 1 and self._slot_bytes % ALIGNMENT:
            # Never so where a row of all heads has 256 bytes, as every published model's has.
            raise EngineError(
                f"a cache slot of the engine has {self._slot_bytes} bytes, TensorRT wants a "
                f"multiple of {ALIGNMENT}",
                "Build the bundle with a --max-context that is a multiple of 128",
            )
        size_bytes = shape[0] * self._slot_bytes
        self._buffers = [
            (f(layer), (g if in_place else h)(layer), runtime.allocate(size_bytes))
            for layer in range(layers)
            for f, g, h in (
                (engine_io.past_key, engine_io.present_key, engine_io.new_key),
                (engine_io.past_value, engine_io.present_value, engine_io.new_value),
            )
        ]

    def addresses(self, first: int) -> dict[str, int]:
        """Return where the caches of slots from ``first`` begin; in place also as outputs."""
        at = first * self._slot_bytes
        return {
            name: address + at
            for past, output, address in self._buffers
            for name in ((past, output) if self.in_place else (past,))
        }

    def row_outputs(self, batch: int, tokens: int) -> dict[str, int]:
        """Return the outputs that hold new rows [B, Hkv, S, D], and their bytes; none in place."""
        size_bytes = batch * self.shape[1] * tokens * self._row_bytes
        return {} if self.in_place else {output: size_bytes for _, output, _ in self._buffers}

    def append(
        self, outputs: Mapping[str, int], tokens: int, first: int, rows: Sequence[tuple[int, int]]
    ) -> None:
        """Copy new rows to where they belong.

        Args:
            outputs: Address of each output's rows [B, Hkv, S, D].
            tokens: S.
            first: Slot of the batch's first row.
            rows: (row of the batch, position of its first token); others are left out.
        """
        heads, capacity = self.shape[1:3]
        width = tokens * self._row_bytes
        for _, output, address in self._buffers:
            for row, position in rows:
                slot = address + (first + row) * self._slot_bytes
                target = slot + position * self._row_bytes, capacity * self._row_bytes
                source = outputs[output] + row * heads * width, width
                self._runtime.copy(target, source, width, heads)

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copy the first rows of one slot to another, on the device."""
        heads, pitch = self.shape[1], self.shape[2] * self._row_bytes
        for _, _, address in self._buffers:
            start, end = (address + slot * self._slot_bytes for slot in (source, target))
            self._runtime.copy((end, pitch), (start, pitch), rows * self._row_bytes, heads)

    def shapes(self, slots: int) -> dict[str, Shape]:
        """Return the shapes of the cache inputs for ``slots`` slots."""
        return {past: (slots, *self.shape[1:]) for past, _, _ in self._buffers}

    def zero(self, slots: Sequence[int]) -> None:
        """Zero whole slots: a NaN left in a masked row would still poison the output."""
        for _, _, address in self._buffers:
            for slot in slots:
                self._runtime.zero(address + slot * self._slot_bytes, self._slot_bytes)


class EngineStep:
    """Buffers of one step, allocated once; its shape can be made smaller again and again.

    Args:
        runtime: Whose memory they are.
        context: What runs the step.
        cache: Caches to bind.
        first: First slot.
        shape: (B, S, K), the largest.
        vocab_size: V.

    Attributes:
        inputs: What the next run reads; to be filled before it.
    """

    def __init__(
        self,
        runtime: Runtime,
        context: Context,
        cache: DeviceCache,
        first: int,
        shape: tuple[int, int, int],
        vocab_size: int,
    ) -> None:
        self._runtime, self._context, self._cache = runtime, context, cache
        self._vocab_size = vocab_size
        batch, _, wanted = shape
        self._batch = batch
        size_bytes = _end(MaskInputs(*shape, cache.shape[2]))
        self._host, self._device = runtime.host(size_bytes), runtime.allocate(size_bytes)
        logits_bytes = batch * wanted * vocab_size * cache.dtype.itemsize
        self._host_logits = runtime.host(logits_bytes)
        self._device_logits = runtime.allocate(logits_bytes)
        self._outputs = {
            name: runtime.allocate(size) for name, size in cache.row_outputs(*shape[:2]).items()
        }
        self._replay: Replay | None = None
        self._tried = False
        self.reshape(first, *shape[1:])

    def reshape(self, first: int, tokens: int, wanted: int) -> None:
        """Take other slots, S and K; not for a step that was captured."""
        self.inputs = MaskInputs(self._batch, tokens, wanted, self._cache.shape[2])
        self._first, self._tokens = first, tokens
        self._shapes = self._cache.shapes(self._batch)
        self._addresses = {**self._cache.addresses(first), **self._outputs}
        at = 0
        for name, array in self.inputs.arrays.items():
            self._shapes[name] = array.shape
            self._addresses[name] = self._device + at
            view = self._host[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            view[...] = array
            self.inputs.arrays[name] = view
            at += _aligned(array.nbytes)
        self._filled: Bytes = self._host[:at]
        shape = (self._batch, wanted, self._vocab_size)
        size_bytes = math.prod(shape) * self._cache.dtype.itemsize
        self._read: Bytes = self._host_logits[:size_bytes]
        self._logits = self._read.view(self._cache.dtype).reshape(shape)
        self._addresses[engine_io.LOGITS] = self._device_logits

    @property
    def captured(self) -> bool:
        """Whether it is replayed as a CUDA graph."""
        return self._replay is not None

    def run(self, rows: Sequence[tuple[int, int]], *, capture: bool = False) -> npt.NDArray[Any]:
        """Run the step; returns logits [B, K, V], overwritten by the next run.

        Args:
            rows: Rows of the batch that are not idle, and the position of their first token.
            capture: Record the first run, and replay it from the next one on.

        Raises:
            EngineError: The engine or CUDA fails.
        """
        self._runtime.upload(self._device, self._filled)
        if self._replay is not None:
            self._replay()
        else:
            self._context.bind(self._shapes, self._addresses)
            self._context.enqueue()
        if self._outputs:  # not captured: positions change from step to step
            self._cache.append(self._outputs, self._tokens, self._first, rows)
        self._runtime.download(self._read, self._device_logits)
        self._runtime.synchronize()
        if capture and not self._tried:
            # The first run has let the engine settle what a capture must not hold.
            self._tried = True
            self._replay = self._context.capture()
        return self._logits


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _end(inputs: MaskInputs) -> int:
    """Return the bytes of all inputs, each aligned."""
    return sum(_aligned(array.nbytes) for array in inputs.arrays.values())
