"""The commands that a device does: live telemetry for some minutes, and a diagnostic bundle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from device.remote.puller import Handler
from edgekit.contracts.command_arguments import live_minutes, upload_url
from edgekit.contracts.signed import Command


class Uploads(Protocol):
    """Who sends a bundle."""

    async def upload(self, url: str, data: bytes) -> None:
        """Put a bundle to an address that is allowed."""
        ...


def handlers(
    go_live: Callable[[float], None], pack: Callable[[], bytes], uploads: Uploads
) -> Mapping[str, Handler]:
    """Return what does each command.

    Args:
        go_live: Sends every sample at once for so many seconds; asked again it begins anew.
        pack: Returns a diagnostic bundle; it may block.
        uploads: Sends it.
    """

    async def live(command: Command) -> None:
        go_live(60.0 * live_minutes(command))

    async def logs(command: Command) -> None:
        url = upload_url(command)
        await uploads.upload(url, await asyncio.to_thread(pack))

    return {"live": live, "logs": logs}
