"""Inside the builder's process: holds a build back while a server is busy, gives it up in need.

TensorRT asks its progress monitor after every step whether to go on; the answer may take its time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.contracts.load_file import read_busy
from edgekit.errors import EngineError
from edgekit.units import format_bytes

POLL_S = 0.2
WAITING = "held back: the server is busy"
"""Phase that is reported meanwhile."""
_MEMINFO = Path("/proc/meminfo")
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Number of the system call ioprio_set(2), which the C library has no function for."""
_IDLE_IO = 3 << 13
"""IOPRIO_CLASS_IDLE: reads and writes only where nobody else does."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine's memory, which a Jetson's GPU shares.

    Attributes:
        total_bytes: All of it.
        available_bytes: What can be had without swapping, by the kernel's estimate.
    """

    total_bytes: int
    available_bytes: int


def read_memory(path: Path = _MEMINFO) -> Memory:
    """Return the machine's memory.

    Raises:
        EngineError: The kernel does not say.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        fields = {name: rest.split()[0] for name, _, rest in (x.partition(":") for x in lines)}
        kib = [int(fields[name]) for name in ("MemTotal", "MemAvailable")]
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise EngineError(f"{path} does not say how much memory is available") from error
    return Memory(kib[0] * 1024, kib[1] * 1024)


class Holding:
    """Answers a build's steps by the rules of ``trt.beside``.

    Args:
        rules: ``load_file``, ``reserve_bytes`` and ``patience_s``.
        phase: Told :data:`WAITING`, and what went on before it afterwards.
        memory: How memory is read; tests give another.

    Attributes:
        error: Why the build was given up; None if it was not.
    """

    def __init__(
        self,
        rules: dict[str, Any],
        phase: Callable[[str], None],
        memory: Callable[[], Memory] = read_memory,
    ) -> None:
        self._load_file = None if rules["load_file"] is None else Path(rules["load_file"])
        self._reserve_bytes: int = rules["reserve_bytes"]
        self._patience_s: float | None = rules["patience_s"]
        self._say, self._memory = phase, memory
        self._phase = ""
        self._held_s = 0.0
        self._one = threading.Lock()  # the builder's threads step at once
        self.error: EngineError | None = None

    def phase(self, name: str) -> None:
        """Report what the builder begins."""
        self._phase = name
        self._say(name)

    def step(self) -> bool:
        """Wait while the server is busy; returns whether to go on.

        Raises nothing: the caller is C++.
        """
        with self._one:
            try:
                if self.error is None:
                    self._wait()
                    self._check_memory()
            except EngineError as error:
                self.error = error
            return self.error is None

    def _wait(self) -> None:
        if self._load_file is None or not read_busy(self._load_file):
            return
        self._say(WAITING)
        while read_busy(self._load_file):
            if self._patience_s is not None and self._held_s >= self._patience_s:
                raise EngineError(
                    f"the build was held back for {self._held_s:.0f} s and given up: the server "
                    "is busy",
                    "Build it when there is less to serve, or give it longer",
                )
            time.sleep(POLL_S)
            self._held_s += POLL_S
        self._say(self._phase)

    def _check_memory(self) -> None:
        available_bytes = self._memory().available_bytes
        if available_bytes < self._reserve_bytes:
            raise EngineError(
                f"the build was given up: {format_bytes(available_bytes)} of memory are available, "
                f"{format_bytes(self._reserve_bytes)} must stay free beside a server",
                "Build it when the server is stopped, or free memory",
            )


def lower_priority() -> None:
    """Let every other process go first, on the processors and on the disk."""
    os.nice(19)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        # A kernel without I/O priorities has none to lower.
        with contextlib.suppress(OSError):
            ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, _IDLE_IO)
