"""When the device looks for documents: on a connection, on a notice, and now and then.

A notice carries nothing and proves nothing, so it does nothing but have the device look, and not
more often than every ``gap_s``. Everything runs in one event loop; ``notice`` and ``connected`` may
be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from device.remote.errors import Reason, RefusedError
from device.remote.exchange import Answer
from device.remote.remote import Remote
from edgekit.contracts.signed import Command
from edgekit.contracts.telemetry import CommandNotice
from edgekit.errors import EdgekitError

_LOG = logging.getLogger(__name__)
GAP_S: Final = 5.0
"""Between two looks, at least, whatever notices come."""
FIRST_S: Final = 30.0
"""The first look is drawn from this: a fleet whose power comes back does not ask as one."""
RETRY_S: Final = 15.0
"""First pause after a look that failed, doubled with each further one."""

Handler = Callable[[Command], Awaitable[None]]


class Service(Protocol):
    """Who is asked."""

    async def pending(self, etag: str = "") -> Answer | None:
        """Return what waits; None if that is what had this name."""
        ...


class Puller:
    """Looks for documents and has them taken up.

    Args:
        remote: Takes them up.
        service: Has them.
        handlers: Command's name to what does it. One that raises an EdgekitError has failed.
        interval_s: Longest pause between two looks.
        gap_s: See :data:`GAP_S`.
        first_s: See :data:`FIRST_S`.
    """

    def __init__(
        self,
        remote: Remote,
        service: Service,
        handlers: Mapping[str, Handler],
        interval_s: float,
        *,
        gap_s: float = GAP_S,
        first_s: float = FIRST_S,
    ) -> None:
        self._remote, self._service, self._handlers = remote, service, handlers
        self._interval_s, self._gap_s, self._first_s = interval_s, gap_s, first_s
        self._etag = ""
        self._failures = 0
        self._wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def notice(self, notice: CommandNotice) -> None:
        """Look soon, since something is said to wait."""
        _LOG.info("notice %s of a %s", notice.id, notice.command)
        self._wake()

    def connected(self) -> None:
        """Look soon, since the link is there (again)."""
        self._wake()

    async def run(self) -> None:
        """Look for ever."""
        self._loop = asyncio.get_running_loop()
        await self._pause(random.uniform(0, self._first_s))  # noqa: S311 - spreads load
        while True:
            await self.pull()
            await asyncio.sleep(self._gap_s)
            await self._pause(self._pause_s())

    async def pull(self) -> None:
        """Look once; what goes wrong is counted and told."""
        self._wanted.clear()
        try:
            answer = await self._service.pending(self._etag)
        except EdgekitError as error:
            self._failures += 1
            self._remote.refuse(_as_refused(error, "unreachable"))
            return
        self._failures = 0
        if answer is None:
            return
        refused = self._remote.refused
        commands = self._remote.take(answer.body)
        # What was refused for the time of day may be right later: it is looked at again.
        self._etag = answer.etag if self._remote.refused == refused else ""
        for command in commands:
            await self._do(command)

    async def _do(self, command: Command) -> None:
        handler = self._handlers.get(command.command)
        if handler is None:
            said = f"{command.command} is nothing this device does"
            self._remote.refuse(RefusedError("unsupported", said))
            return
        try:
            await handler(command)
        except EdgekitError as error:
            self._remote.refuse(_as_refused(error, "failed"))
        except Exception as error:  # noqa: BLE001 - ours; the commands after it come only once
            _LOG.exception("command %s (%s)", command.id, command.command)
            said = f"{command.command} met a {type(error).__name__}"  # its text may quote anything
            self._remote.refuse(RefusedError("failed", said))
        else:
            _LOG.info("command %s (%s) is done", command.id, command.command)

    def _pause_s(self) -> float:
        """Return how long to wait: drawn, so that a fleet does not ask as one."""
        longest_s = self._interval_s
        if self._failures:
            longest_s = min(longest_s, RETRY_S * 2.0 ** min(self._failures - 1, 20))
        return random.uniform(longest_s / 2, longest_s)  # noqa: S311 - spreads load

    async def _pause(self, pause_s: float) -> None:
        try:
            await asyncio.wait_for(self._wanted.wait(), pause_s)
        except asyncio.TimeoutError:
            return

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody looks any more
                self._loop.call_soon_threadsafe(self._wanted.set)


def _as_refused(error: EdgekitError, reason: Reason) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    return RefusedError(reason, error.message, error.remedy)
