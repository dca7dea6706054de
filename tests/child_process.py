"""Processes that a test starts, ends and starts again on free ports, by their ids."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

_STOP_S = 30.0
_Child = TypeVar("_Child", bound="ChildProcess")


class ChildProcess:
    """One program; it ends with its block. Subclasses say how it is started.

    Args:
        log: What it says goes to the end of this file.

    Attributes:
        log: As given.
        STOP: Asks it to end.
        LEAVE: Ends it with its block.
    """

    STOP: ClassVar[signal.Signals] = signal.SIGTERM
    LEAVE: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self: _Child) -> _Child:  # noqa: PYI019  # Self is of 3.11
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(self.LEAVE)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, f"{type(self).__name__} is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it is of use."""
        raise NotImplementedError

    def stop(self) -> int:
        """End it as an operator would; returns its exit code."""
        return self._end(self.STOP)

    def kill(self) -> None:
        """End it as a crash or the kernel's memory killer would (``kill -9``)."""
        self._end(signal.SIGKILL)

    def _begin(self, command: list[Any], **options: Any) -> None:
        """Start a command that writes to the log.

        Args:
            command: Program and arguments.
            options: Of ``subprocess.Popen``.
        """
        assert self._process is None, f"{type(self).__name__} is running"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, **{"stdout": log, "stderr": log, **options})

    def _wait_for(self, condition: Callable[[], bool], what: str, within_s: float) -> None:
        """Wait until the process has done something.

        Raises:
            RuntimeError: It ended, or was not in time and is ended; with what it said last.
        """
        assert self._process is not None
        deadline = time.monotonic() + within_s
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{what}: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def _end(self, by: signal.Signals) -> int:
        """End it by a signal, or at once where that takes too long; returns its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            process.send_signal(signal.SIGCONT)  # it may be paused
            process.send_signal(by)
            try:
                return process.wait(_STOP_S)
            finally:
                process.kill()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    return free_ports(1)[0]
