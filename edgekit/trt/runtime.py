"""What a session needs of a machine that runs engines: memory, a stream, contexts, captures.

Small on purpose, so that what the sessions do with it can be tested without a GPU. Everything is
enqueued on one stream in the order of the calls; ``synchronize`` waits for it. Addresses and sizes
are bytes. ``trt.cuda`` has the implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Shape = tuple[int, ...]
Pitched = tuple[int, int]
"""Address of the first of some rows in device memory, and bytes from one to the next."""
Replay = Callable[[], None]
"""Enqueues a captured step again."""


class Context(Protocol):
    """One profile of an engine, with its own shapes and addresses."""

    def bind(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Set the inputs' shapes and every tensor's address.

        Raises:
            EngineError: The engine refuses one.
        """

    def enqueue(self) -> None:
        """Run once with what is bound.

        Raises:
            EngineError: The engine fails.
        """

    def capture(self) -> Replay | None:
        """Record a run with what is bound, without running it.

        Shapes and addresses stand in the recording: binding others does not change it. To be
        called after one ``enqueue`` of the same shapes.

        Returns:
            What replays it; None where the engine cannot be captured.

        Raises:
            EngineError: CUDA fails.
        """


class Runtime(Protocol):
    """One engine on one device."""

    def tensors(self) -> Mapping[str, Any]:
        """Return the NumPy dtype of each input and output."""

    def context(self, profile: int) -> Context:
        """Return a new context of the engine's profile number ``profile``."""

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory, zeroed, that lives until :meth:`close`.

        Raises:
            EngineError: Memory ran out.
        """

    def host(self, size_bytes: int) -> Bytes:
        """Return zeroed main memory that copies to the device need not stage."""

    def upload(self, address: int, data: Bytes) -> None:
        """Copy to the device; ``data`` must stay as it is until :meth:`synchronize`."""

    def download(self, data: Bytes, address: int) -> None:
        """Copy from the device; ``data`` is whole after :meth:`synchronize`."""

    def zero(self, address: int, size_bytes: int) -> None:
        """Zero device memory."""

    def copy(self, target: Pitched, source: Pitched, width: int, height: int) -> None:
        """Copy ``height`` rows of ``width`` bytes on the device."""

    def synchronize(self) -> None:
        """Wait for all that was enqueued.

        Raises:
            EngineError: Something of it failed.
        """

    def close(self) -> None:
        """Free everything, once; the runtime is of no use after it."""
