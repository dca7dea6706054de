"""Requests that come when they please: Poisson arrivals at a share of what a server can do.

A closed loop hides waiting: a slow server is asked less. Here the capacity is measured first, with
some clients that each ask again once they are answered; then requests arrive at a fixed mean rate,
whatever has become of those before, and their times to the first token are told by quantiles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

Ask = Callable[[], Awaitable[float]]
"""Asks for one answer and returns the seconds to its first token."""


async def capacity(ask: Ask, streams: int, requests: int) -> float:
    """Return requests a second with some clients that never pause.

    Args:
        ask: See ``Ask``.
        streams: Clients.
        requests: How many in all; counted once every client has been answered once.
    """
    left, ends = iter(range(requests)), list[float]()

    async def client() -> None:
        for _ in left:
            await ask()
            ends.append(time.perf_counter())

    await asyncio.gather(*(client() for _ in range(streams)))
    counted = sorted(ends)[streams - 1 :]
    return (len(counted) - 1) / (counted[-1] - counted[0])


async def arrivals(ask: Ask, rate: float, requests: int, seed: int) -> list[float]:
    """Ask at the times of a Poisson process; returns all times to the first token."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, requests)
    due_s, running = time.perf_counter(), list[asyncio.Future[float]]()
    for gap in gaps:
        due_s += gap
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        running.append(asyncio.ensure_future(ask()))
    return list(await asyncio.gather(*running))


def quantiles(firsts: list[float]) -> dict[str, Any]:
    """Return what is told of times to the first token, in seconds."""
    half, late = np.quantile(firsts, [0.5, 0.99])
    return {
        "first_token_s": float(half),
        "first_token_p90_s": float(np.quantile(firsts, 0.9)),
        "first_token_p99_s": float(late),
        "first_token_worst_s": max(firsts),
        "p99_to_p50": float(late / half),
    }
