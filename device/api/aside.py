"""Work that would hold up the event loop: over much it is done in a thread.

In two at most, for the engine needs the processor, too: who sends much waits for others who do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

LONG_BYTES: Final = 1 << 14
"""Work on so many bytes takes milliseconds; less is done where it is asked for."""
NAME: Final = "aside"
WORKERS: Final = 2
_POOL: Final = ThreadPoolExecutor(WORKERS, thread_name_prefix=NAME)
T = TypeVar("T")


async def aside(size: int, work: Callable[[], T]) -> T:
    """Return what some work comes to.

    Args:
        size: Bytes that it works on.
        work: Touches nothing of the event loop's.
    """
    return await in_thread(work) if size >= LONG_BYTES else work()


async def in_thread(work: Callable[[], T]) -> T:
    """Return what some work comes to that is long whatever its size."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, work)
