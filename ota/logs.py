"""The log of the cloud's side: JSON lines on standard error, one an event."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import TextIO

LOGGER = logging.getLogger("edgekit.fleet")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log(level: int, event: str, **fields: object) -> None:
    """Write one event.

    Args:
        level: Of ``logging``.
        event: What happened, a few fixed words.
        fields: What varies: names with units, JSON values.
    """
    LOGGER.log(level, event, extra={"fields": fields})


def write_logs(stream: TextIO | None = None) -> None:
    """Write the log, from information on, to a stream; standard error if none is given."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines())
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)
