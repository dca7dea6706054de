"""Builds an engine on a machine that serves meanwhile: memory first, one at a time, out of its way.

The build's peak is what ``edgekit plan`` counts with. A build begins only where it would leave the
target's reserve free, holds back between two of the builder's steps while the server is busy
(``trt.holding``), and is given up where free memory falls under the reserve all the same. Between
two steps nothing holds it back but its priority, which is the lowest, and that the system ends it
first when memory runs out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.reader import Bundle
from edgekit.bundle.storage import storage_errors
from edgekit.contracts.load_file import write_load
from edgekit.errors import EngineError
from edgekit.models.config import ModelConfig
from edgekit.models.exported import stored_config
from edgekit.plan.memory import RUNTIME_ALLOWANCE_BYTES, engine_build_peak_bytes
from edgekit.targets import MEMORY_RESERVE_FRACTION
from edgekit.trt.holding import Memory, read_memory
from edgekit.units import format_bytes

ASK_S = 0.25
"""How often a callback is asked whether the server is busy."""
_LOCK = "building.lock"

Busy = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Beside:
    """How to build beside a server.

    Attributes:
        busy: Whether it is busy now: a function, asked from a thread, or a file
            (``contracts.load_file``) that it writes; None for a server that never says.
        patience_s: Seconds that a build is held back in all before it is given up; None is forever.
        reserve_fraction: Of the memory, what must stay free.
    """

    busy: Busy | Path | None = None
    patience_s: float | None = None
    reserve_fraction: float = MEMORY_RESERVE_FRACTION

    @contextlib.contextmanager
    def turn(self, bundle: Bundle, folder: Path) -> Iterator[dict[str, Any]]:
        """Wait for other builds, reserve memory, and yield the rules for the builder's process.

        Args:
            bundle: Whose engine is built.
            folder: The cache's: builds beside a server take turns in it.

        Raises:
            EngineError: The build would not leave the reserve free.
            StorageError: The folder cannot be written.
        """
        with _one_at_a_time(folder), contextlib.ExitStack() as stack:
            memory = read_memory()
            reserve_bytes = int(self.reserve_fraction * memory.total_bytes)
            require_memory(memory, build_peak_bytes(bundle), reserve_bytes)
            path = self.busy
            if callable(path):
                path = stack.enter_context(_asked(path))
            yield {
                "load_file": None if path is None else str(path.absolute()),
                "reserve_bytes": reserve_bytes,
                "patience_s": self.patience_s,
            }


def build_peak_bytes(bundle: Bundle) -> int:
    """Return what building a bundle's engine may take, as ``edgekit plan`` counts it.

    To the plan's bytes a parameter comes its allowance for CUDA and TensorRT, which a small model's
    builder takes as well.

    Raises:
        EngineError: The bundle has another exporter's model.
    """
    config = stored_config(bundle.manifest.model["config"])
    if not isinstance(config, ModelConfig):
        raise EngineError("bundles built with --exporter optimum have no engine to build")
    return engine_build_peak_bytes(config) + RUNTIME_ALLOWANCE_BYTES


def require_memory(memory: Memory, peak_bytes: int, reserve_bytes: int) -> None:
    """Refuse a build that would not leave the reserve free.

    Raises:
        EngineError: It would not; says what is free and what is needed.
    """
    if memory.available_bytes - peak_bytes < reserve_bytes:
        raise EngineError(
            f"building the engine may take {format_bytes(peak_bytes)} and must leave "
            f"{format_bytes(reserve_bytes)} free beside a server; "
            f"{format_bytes(memory.available_bytes)} are available",
            "Build it when the server is stopped, or free memory",
        )


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder's turn: two builds would each count the same free memory."""
    path = folder / _LOCK
    with storage_errors(path, option="--cache"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _asked(busy: Busy) -> Iterator[Path]:
    """Yield a load file that says what a function says, as long as it is asked.

    An error of the function ends the asking, and is raised when the build has ended.
    """
    done, errors = threading.Event(), []

    def ask(path: Path) -> None:
        try:
            write_load(path, busy=busy())
            while not done.wait(ASK_S):
                write_load(path, busy=busy())
        except Exception as error:  # noqa: BLE001 - the caller's function; handed on, not lost
            errors.append(error)

    with tempfile.TemporaryDirectory(prefix="edgekit-load-") as folder:
        path = Path(folder) / "load"
        thread = threading.Thread(target=ask, args=(path,), name="load", daemon=True)
        thread.start()
        try:
            yield path
        finally:
            done.set()
            thread.join()
    if errors:
        raise errors[0]
