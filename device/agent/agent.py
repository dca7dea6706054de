"""The agent put together: the only place that makes its parts and wires them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from device.agent.background import beside
from device.agent.config import AgentConfig
from device.agent.front import make_front
from device.agent.models import Models
from device.agent.server import AgentServer
from device.agent.systemd import Notifier
from device.agent.telemetry import make_telemetry
from device.api.energy import Energy, readable_rails
from device.api.log import JsonLog
from device.api.metrics import Metrics
from device.api.settings import read_keys
from device.diagnostics.tail import LogTail
from edgekit import __version__
from edgekit.bundle.layout import MANIFEST
from edgekit.contracts.series import Values
from edgekit.errors import EdgekitError, MissingExtraError, TelemetryError

if TYPE_CHECKING:  # packages of extras come with them, NumPy with the last
    from device.agent.fleet import Fleet
    from device.telemetry.clock import Clock
    from edgekit.engine.load import LoadedModel

WATCH_S: Final = 5.0
"""Between two looks at the engines where systemd does not ask for more."""
MAX_RETRY_S: Final = 60.0
"""Longest time between two tries of a bundle that did not load while nothing is served."""


class Agent:
    """Serves the device's model, and changes it when it is told to.

    Args:
        config: What it is told.
        notifier: Who wants to know how it is.
        clock: The device's.

    Attributes:
        models: What it serves; ``models.swap`` puts another bundle in place.
        exit_code: 1 once an engine has died.
    """

    def __init__(
        self,
        config: AgentConfig,
        notifier: Notifier | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._notifier = Notifier() if notifier is None else notifier
        self._metrics = Metrics()
        self._tail = None if config.fleet is None else LogTail()
        kept = None if self._tail is None else self._tail.add
        self._log = JsonLog(config.log, self._metrics.log_lost.inc, kept)
        settings = config.settings()
        self._keys = settings.keys
        self.models = Models(config.bundle, config, settings, self._metrics, self._log)
        self._fleet = self._make_fleet(clock)
        self._telemetry = make_telemetry(config, self.models, self._metrics, self._fleet, clock)
        self._energy = Energy(rails) if (rails := readable_rails()) else None
        self._tasks: list[asyncio.Task[None]] = []
        self._reload = asyncio.Lock()
        front = make_front(self.models, self._log, vllm_metrics=config.vllm_metrics)
        self._server = AgentServer(front, config, self._begin, self._end)
        self._port = config.port
        self._on_terminal = sys.stderr.isatty()
        self.exit_code = 0

    def run(self, listener: socket.socket, model: LoadedModel | None = None) -> int:
        """Serve until SIGTERM or Ctrl-C; returns the exit code.

        Args:
            listener: Where it listens.
            model: Served from the start; None looks for the bundle once it listens.
        """
        if model is not None:
            self.models.adopt(model)
        self._port = listener.getsockname()[1]
        with contextlib.nullcontext() if self._fleet is None else self._fleet.records:
            self._server.serve_on(listener)
        self._log.event("stopped", exit_code=self.exit_code)
        self._log.close()
        return self.exit_code

    def _make_fleet(self, clock: Clock | None) -> Fleet | None:
        """Return what does what the fleet says; None without its table.

        Raises:
            MissingExtraError: Its packages are not installed.
            TrustError: The file of trusted keys cannot be used.
            StorageError: The file of what was taken up cannot be opened.
        """
        if self._config.fleet is None or self._tail is None:
            return None
        try:
            from device.agent.fleet import Fleet  # noqa: PLC0415 - an HTTP client and signatures
        except ModuleNotFoundError as error:
            raise MissingExtraError("Remote configuration", "serve,telemetry") from error
        return Fleet(
            self._config,
            self._config.fleet,
            router=self.models.settings.router,
            log=self._log,
            tail=self._tail,
            go_live=self._go_live,
            readings=self._readings,
            clock=clock,
        )

    def _go_live(self, for_s: float) -> None:
        """Send every sample at once for a while.

        Raises:
            TelemetryError: There is no telemetry, or the day's bytes are spoken for.
        """
        if self._telemetry is None:
            raise TelemetryError("there is no table [telemetry]: nothing is sent")
        self._telemetry.go_live(for_s)

    def _readings(self) -> Values:
        """Return the last readings.

        Raises:
            TelemetryError: Nothing is read.
        """
        if self._telemetry is None:
            raise TelemetryError("there is no table [telemetry]: nothing is read")
        return self._telemetry.readings

    async def _begin(self) -> None:
        """Begin what goes on beside the server."""
        self._log.event(
            "started",
            version=__version__,
            host=self._config.host,
            port=self._port,
            bundle=str(self._config.bundle),
        )
        if self._energy is not None:
            self._metrics.registry.register(self._energy)
            self._energy.start()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        if self._fleet is not None:
            self._start(self._fleet.run())
        if self._telemetry is not None:
            self._telemetry.start()
        self._notifier.ready()
        self._start(self._keep_loaded())
        self._start(self._watch())

    async def _end(self) -> None:
        """End it, and take no more requests than there are."""
        self._notifier.stopping()
        self.models.end()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # else it would kill what drains
        for task in list(self._tasks):
            task.cancel()
        self._start(self._cut_off())
        if self._energy is not None:
            self._energy.stop()
        if self._telemetry is not None and not await beside(self._telemetry.stop, "stop"):
            self._log.event("telemetry_stopped_late")

    async def _cut_off(self) -> None:
        """End what outlasts its time, while there is a connection to tell so."""
        await asyncio.sleep(self._config.drain_s)
        await self.models.stop(drain_s=0.0)
        if self.models.settings.router is not None:
            await self.models.settings.router.cut_off()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End the agent if what goes on beside the server has failed: nobody would watch it."""
        self._tasks.remove(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.event("agent_failed", error=type(error).__name__, message=str(error))
            self.exit_code, self._server.should_exit = 1, True

    def _on_hangup(self) -> None:
        """Renew; but a terminal that is gone, under which the agent was started, ends it."""
        if self._on_terminal and not sys.stderr.isatty():
            self._server.should_exit = True
        else:
            self._start(self._renew())

    async def _renew(self) -> None:
        """Do what SIGHUP asks for: log, keys, certificate and model are looked up again."""
        async with self._reload:
            self._notifier.reloading()
            # One that fails keeps no other: a key that was taken out must be none.
            for renew in (self._log.reopen, self._renew_keys, self._server.renew_certificate):
                self._try(renew)
            await self.models.swap()
            self._notifier.ready()

    def _try(self, renew: Callable[[], None]) -> None:
        try:
            renew()
        except EdgekitError as error:
            self._log.event("reload_failed", error=type(error).__name__, message=str(error))

    def _renew_keys(self) -> None:
        """Read the API keys again.

        Raises:
            StorageError: They cannot be read; the old ones stay.
        """
        if self._config.api_keys is not None and isinstance(self._keys, dict):
            fresh = read_keys(self._config.api_keys)
            self._keys.clear()
            self._keys.update(fresh)

    async def _keep_loaded(self) -> None:
        """Load the bundle once it is there; one that does not load is tried when it changes."""
        tried: tuple[object, ...] | None = None
        pause_s, next_s = self._config.poll_s, 0.0
        while True:
            mark = bundle_mark(self._config.bundle)
            due = mark != tried or time.monotonic() >= next_s
            if mark is not None and due and self.models.state == "no model":
                pause_s = min(2 * pause_s, MAX_RETRY_S) if mark == tried else self._config.poll_s
                tried = mark
                await self.models.swap()
                next_s = time.monotonic() + pause_s
            await asyncio.sleep(self._config.poll_s)

    async def _watch(self) -> None:
        """Feed systemd's watchdog while every engine gets on; end when one has died."""
        within_s = self._notifier.watchdog_s
        pause_s = WATCH_S if within_s is None else min(within_s / 3, WATCH_S)
        told = ""
        while True:
            fault = self.models.fault()
            if fault and fault.partition(" has run")[0] != told:
                told = fault.partition(" has run")[0]
                self._log.event("engine_fault", message=fault)
            self._notifier.status(fault or self._status())
            if self.models.has_died:
                self.exit_code = 1
                self._server.should_exit = True
            elif not fault:
                told = ""
                self._notifier.watchdog()
            await asyncio.sleep(pause_s)

    def _status(self) -> str:
        """Return a line for ``systemctl status``."""
        current = self.models.current
        return self.models.state if current is None else f"{self.models.state} {current.name}"


def bundle_mark(path: Path) -> tuple[object, ...] | None:
    """Return what tells one bundle at a path from another; None while there is none."""
    try:
        manifest = (path / MANIFEST).stat()
    except OSError:
        return None
    return os.path.realpath(path), manifest.st_ino, manifest.st_mtime_ns, manifest.st_size
