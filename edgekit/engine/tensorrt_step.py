"""Device memory of a TensorRT session: caches, and one step's inputs and logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    Args:
        runtime: Whose memory it is.
        layers: Number of layers.
        shape: [slots, Hkv, C, D].
        dtype: Activation type.

    Raises:
        EngineError: Memory ran out, or slots do not begin where TensorRT takes an address.
    """

    def __init__(
        self, runtime: Runtime, layers: int, shape: tuple[int, int, int, int], dtype: np.dtype[Any]
    ) -> None:
        self._runtime = runtime
        self.shape, self.dtype = shape, dtype
        self._slot_bytes = math.prod(shape[1:]) * dtype.itemsize
        if shape[0] > 1 and self._slot_bytes % ALIGNMENT:
            # Never so where a row of all heads has 256 bytes, as every published model's has.
            raise EngineError(
                f"a cache slot of the engine has {self._slot_bytes} bytes, TensorRT wants a "
                f"multiple of {ALIGNMENT}",
                "Build the bundle with a --max-context that is a multiple of 128",
            )
        size_bytes = shape[0] * self._slot_bytes
        self._buffers = [
            (f(layer), g(layer), runtime.allocate(size_bytes))
            for layer in range(layers)
            for f, g in (
                (engine_io.past_key, engine_io.present_key),
                (engine_io.past_value, engine_io.present_value),
            )
        ]

    def addresses(self, first: int) -> dict[str, int]:
        """Return where the caches begin for slots from ``first``: output and input are one."""
        at = first * self._slot_bytes
        return {
            name: address + at
            for past, present, address in self._buffers
            for name in (past, present)
        }

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
        self._replay: Replay | None = None
        self._tried = False
        self.reshape(first, *shape[1:])

    def reshape(self, first: int, tokens: int, wanted: int) -> None:
        """Take other slots, S and K; not for a step that was captured."""
        self.inputs = MaskInputs(self._batch, tokens, wanted, self._cache.shape[2])
        self._shapes = self._cache.shapes(self._batch)
        self._addresses = self._cache.addresses(first)
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

    def run(self, *, capture: bool = False) -> npt.NDArray[Any]:
        """Run the step; returns logits [B, K, V], overwritten by the next run.

        Args:
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
