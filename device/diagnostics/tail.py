"""The last of the log, in memory: where the agent logs to the journal it cannot read it again."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from datetime import datetime, timezone
from typing import Final

MAX_BYTES: Final = 512 * 1024


class LogTail(logging.Handler):
    """Keeps the last lines; a handler of ``logging``, and what ``JsonLog`` hands its lines to.

    Args:
        limit_bytes: Of all lines together.
    """

    def __init__(self, limit_bytes: int = MAX_BYTES) -> None:
        super().__init__(logging.INFO)
        self._limit_bytes = limit_bytes
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._own = threading.Lock()

    def add(self, line: str) -> None:
        """Keep a line; the oldest go."""
        with self._own:
            self._lines.append(line)
            self._bytes += len(line.encode("utf-8", "replace"))
            while self._bytes > self._limit_bytes:
                self._bytes -= len(self._lines.popleft().encode("utf-8", "replace"))

    def lines(self) -> list[str]:
        """Return what there is, the oldest first."""
        with self._own:
            return list(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of ``logging`` as an event, without a traceback.

        Only our own: a library's may hold anything.
        """
        if record.name.partition(".")[0] not in {"device", "edgekit"}:
            return
        time = datetime.fromtimestamp(record.created, timezone.utc)
        event = {
            "time": time.isoformat(timespec="milliseconds"),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        self.add(json.dumps(event, ensure_ascii=False))
