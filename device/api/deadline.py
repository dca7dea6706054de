"""When a request is given up."""

from __future__ import annotations

import math
from typing import Final

from starlette.datastructures import Headers

from device.api.errors import ApiError

DEADLINE_HEADER: Final = "x-edgekit-deadline-s"


def deadline_of(headers: Headers, arrived_s: float, timeout_s: float) -> float:
    """Return a request's deadline: the server's, or a sooner one that its head asks for.

    Args:
        headers: Its own.
        arrived_s: When it came, of ``time.monotonic``, and so what is returned.
        timeout_s: The server's.

    Raises:
        ApiError: The header is no number above 0.
    """
    said = headers.get(DEADLINE_HEADER)
    return arrived_s + (timeout_s if said is None else min(timeout_s, _seconds(said)))


def _seconds(said: str) -> float:
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise ApiError(400, f"{DEADLINE_HEADER}: {said!r} is no number of seconds above 0")
    return seconds
