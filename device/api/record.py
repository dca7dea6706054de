"""What is known of the HTTP request that is being answered, for its line in the log.

A context variable holds it: what learns something (who asks, which fault) says so without every
function between them passing it on.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # NumPy comes with it
    from device.runtime.request import Request


@dataclass(slots=True)
class Record:
    """One HTTP request.

    Attributes:
        id: Its ``x-request-id``.
        arrived_s: When it came, of ``time.monotonic``.
        deadline_s: When it is given up; None until that is known.
        client: Whose it is; empty until that is known.
        model: Name of the model that answers.
        requests: What the engine is asked for it.
        fault: Type of the error that it is answered with.
        status: HTTP status; 0 until the answer begins.
    """

    id: str
    arrived_s: float = field(default_factory=time.monotonic)
    deadline_s: float | None = None
    client: str = ""
    model: str = ""
    requests: list[Request] = field(default_factory=list)
    fault: str = ""
    status: int = 0


_CURRENT: ContextVar[Record | None] = ContextVar("edgekit_request", default=None)


def begin(record: Record) -> None:
    """Make a record the one of this task, and of those that it starts."""
    _CURRENT.set(record)


def current() -> Record | None:
    """Return the record of the request that this task answers; None outside of one."""
    return _CURRENT.get()
