"""Why the engine's side refuses or gives up a request; light, so that the API can know them."""

from __future__ import annotations

from edgekit.errors import EngineError


class QueueFullError(EngineError):
    """As many requests wait as may: ask again later."""


class EngineStoppedError(EngineError):
    """The engine takes no more requests, or has left one unfinished."""


class DeadlinePassedError(EngineError):
    """The request was not answered in its time."""


class GrammarError(EngineError):
    """A schema that cannot be held to."""
