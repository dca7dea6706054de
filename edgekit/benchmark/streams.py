"""Requests over streams, each of which asks again as soon as it has its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from edgekit.benchmark.endpoint import Client
from edgekit.benchmark.samples import Sample
from edgekit.progress import SILENT, Progress


async def ask_over_streams(
    client: Client,
    prompts: Sequence[str],
    streams: int,
    max_tokens: int,
    progress: Progress = SILENT,
) -> list[Sample]:
    """Ask every prompt once.

    Args:
        client: Asks.
        prompts: In order; whichever stream is free takes the next.
        streams: Requests at a time.
        max_tokens: Most of an answer.
        progress: Advanced by each answer; the caller starts and finishes the stage.

    Raises:
        EndpointError: A request failed, which ends the others.
    """
    waiting = iter(prompts)
    found: list[Sample] = []

    async def stream() -> None:
        for prompt in waiting:
            found.append(await client.ask(prompt, max_tokens))
            progress.advance(1)

    tasks = [asyncio.create_task(stream()) for _ in range(streams)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found
