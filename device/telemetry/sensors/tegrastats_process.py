"""Runs ``tegrastats`` and reads its newest line, without a thread and without waiting."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence

from device.telemetry.sensors.tegrastats import parse_line
from edgekit.contracts.series import Values
from edgekit.errors import SensorError

logger = logging.getLogger(__name__)

_RESTART_S = 60.0
_MAX_TAIL = 64 * 1024


class Tegrastats:
    """Readings of a ``tegrastats`` of our own, for boards whose sysfs lacks something.

    Args:
        command: Program and arguments.
        interval_s: How often it writes; a line older than three of these is no reading.
    """

    name = "tegrastats"

    def __init__(self, command: Sequence[str] = ("tegrastats",), interval_s: float = 5.0) -> None:
        self._command = [*command, "--interval", str(int(interval_s * 1000))]
        self._interval_s = interval_s
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = float("-inf")
        self._tail = b""
        self._line: tuple[float, bytes] | None = None

    def read(self, now_s: float) -> Values:
        """Return the newest line's readings, none before the first one.

        Raises:
            SensorError: It cannot be started, or writes what is no line.
        """
        if self._process is None or self._process.poll() is not None:
            self._start(now_s)
        self._drain(now_s)
        if self._line is None or now_s - self._line[0] > 3 * self._interval_s:
            return {}
        return parse_line(self._line[1].decode("utf-8", "replace")).values()

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def _start(self, now_s: float) -> None:
        if now_s - self._started_s < _RESTART_S:
            return
        self.close()
        self._started_s, self._tail = now_s, b""
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise SensorError(f"cannot start {self._command[0]}: {error.strerror}") from error
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)

    def _drain(self, now_s: float) -> None:
        """Read what is there; only what ends in a line feed is a line."""
        if self._process is None or self._process.stdout is None:
            return
        while True:
            try:
                data = os.read(self._process.stdout.fileno(), _MAX_TAIL)
            except BlockingIOError:
                break
            if not data:
                break
            *lines, self._tail = (self._tail + data).split(b"\n")
            self._tail = self._tail[-_MAX_TAIL:]
            if lines:
                self._line = (now_s, lines[-1])
