"""Where records of ``logging`` go while the agent runs: standard error, and the end of its log.

Without this they go where Python has them go, warnings to standard error.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Final

from device.diagnostics.tail import LogTail
from edgekit.contracts.remote_settings import LOG_LEVELS

OURS: Final = ("device", "edgekit")
OWN_LEVEL: Final = "warning"
"""Of standard error, while nobody has said another."""
_LEVELS: Final[dict[str, int]] = {name: getattr(logging, name.upper()) for name in LOG_LEVELS}


class Records:
    """The handlers of this project's loggers, from the block's begin to its end.

    Args:
        tail: Keeps what is informative or more, for a diagnostic bundle.
    """

    def __init__(self, tail: LogTail) -> None:
        self._tail, self._stderr = tail, logging.StreamHandler()
        self._before: dict[str, int] = {}
        self.set_level(None)

    def __enter__(self) -> Records:  # noqa: PYI034  # Self is of 3.11
        for name in OURS:
            logger = logging.getLogger(name)
            self._before[name] = logger.level
            logger.addHandler(self._tail)
            logger.addHandler(self._stderr)
            logger.setLevel(self._tail.level)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, level in self._before.items():
            logger = logging.getLogger(name)
            logger.removeHandler(self._tail)
            logger.removeHandler(self._stderr)
            logger.setLevel(level)
        self._before.clear()

    def set_level(self, level: str | None) -> None:
        """Set from which level on records are written to standard error.

        Args:
            level: One of ``LOG_LEVELS``; None for the agent's own.
        """
        number = _LEVELS[level or OWN_LEVEL]
        self._stderr.setLevel(number)
        self._tail.setLevel(min(number, logging.INFO))
        for name in self._before:
            logging.getLogger(name).setLevel(self._tail.level)
