"""The fleet's word in the agent: what is looked for, what of it holds, and what tells of it.

What holds is one object at a time. It is applied in the event loop, before anything is served or
sent and again with each document; the telemetry's thread takes its part between two turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from device.agent.config import AgentConfig
from device.agent.records import Records
from device.api.log import JsonLog
from device.diagnostics.tail import LogTail
from device.remote.assembly import bundle_parts, local_of, make_puller, make_remote, tuning_of
from device.remote.config import FleetConfig
from device.remote.effective import Effective
from device.routing.router import Router
from device.telemetry.clock import Clock, SystemClock
from device.telemetry.tuning import Tuning
from edgekit.contracts.series import Values

_LOG = logging.getLogger(__name__)
RETRY_S: Final = 60.0
"""After a fault of ours in looking for documents."""


class Fleet:
    """Has an agent do what its fleet says, as far as its owner lets it.

    Args:
        config: The agent's.
        fleet: Its table ``[fleet]``.
        router: Where requests may leave; None where none may.
        log: The agent's.
        tail: The last of that log.
        go_live: Has telemetry send every sample at once for so many seconds.
        readings: Returns the telemetry's last readings.
        clock: The device's.

    Attributes:
        tuning: What holds of the telemetry's settings; None without a table ``[telemetry]``.
        records: Keeps what is logged for a diagnostic bundle, too, in its block.
        remote: What was said from afar.
        puller: Is told of notices and connections.

    Raises:
        TrustError: The file of trusted keys is missing, or not what it should be.
        StorageError: The file of what was taken up cannot be opened.
    """

    def __init__(
        self,
        config: AgentConfig,
        fleet: FleetConfig,
        *,
        router: Router | None,
        log: JsonLog,
        tail: LogTail,
        go_live: Callable[[float], None],
        readings: Callable[[], Values],
        clock: Clock | None = None,
    ) -> None:
        self._router, self._log = router, log
        self._own = None if config.telemetry is None else config.telemetry.tuning
        self.records = Records(tail)
        self.tuning: Tuning | None = self._own
        clock = clock or SystemClock()
        self.remote = make_remote(fleet, local_of(config), clock, self._hold)
        parts = bundle_parts(config, tail.lines, readings, self.remote)
        self.puller = make_puller(fleet, self.remote, clock, go_live, parts)

    async def run(self) -> None:
        """Look for documents for ever; a fault of ours ends neither that nor what is served."""
        while True:
            try:
                await self.puller.run()
            except Exception:  # noqa: BLE001 - whatever it is, it is told and tried again
                _LOG.exception("looking for documents failed; next try in %.0f s", RETRY_S)
            await asyncio.sleep(RETRY_S)

    def _hold(self, effective: Effective) -> None:
        """Let a configuration hold."""
        policy = effective.leaks.policy
        if self._router is not None:
            self._router.tighten(policy)
        if self._own is not None:
            self.tuning = tuning_of(effective, self._own)
        self.records.set_level(effective.log_level)
        self._log.event("configured", cloud=policy.cloud, level=effective.log_level)
