"""Work that would hold up the event loop: over much it is done in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

LONG_BYTES: Final = 1 << 14
"""Work on so many bytes takes milliseconds; less is done where it is asked for."""
T = TypeVar("T")


async def aside(size: int, work: Callable[[], T]) -> T:
    """Return what some work comes to.

    Args:
        size: Bytes that it works on.
        work: Touches nothing of the event loop's.
    """
    return await asyncio.to_thread(work) if size >= LONG_BYTES else work()
