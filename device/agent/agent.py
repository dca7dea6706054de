"""The agent put together: the only place that makes its parts and wires them."""

from __future__ import annotations

import asyncio
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
from edgekit import __version__
from edgekit.bundle.layout import MANIFEST
from edgekit.contracts.telemetry import CommandNotice
from edgekit.errors import EdgekitError

if TYPE_CHECKING:  # NumPy comes with it
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
        on_notice: Called in the telemetry's thread with notices of what is to be fetched.

    Attributes:
        models: What it serves; ``models.swap`` puts another bundle in place.
        exit_code: 1 once an engine has died.
    """

    def __init__(
        self,
        config: AgentConfig,
        notifier: Notifier | None = None,
        on_notice: Callable[[CommandNotice], None] | None = None,
    ) -> None:
        self._config = config
        self._notifier = Notifier() if notifier is None else notifier
        self._metrics = Metrics()
        self._log = JsonLog(config.log, self._metrics.log_lost.inc)
        settings = config.settings()
        self._keys = settings.keys
        self.models = Models(
            config.bundle, config.load_options(), settings, self._metrics, self._log
        )
        self._telemetry = make_telemetry(config, self.models, self._metrics, on_notice)
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
        self._server.serve_on(listener)
        self._log.event("stopped", exit_code=self.exit_code)
        self._log.close()
        return self.exit_code

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
        for task in list(self._tasks):
            task.cancel()
        if self._energy is not None:
            self._energy.stop()
        if self._telemetry is not None and not await beside(self._telemetry.stop, "stop"):
            self._log.event("telemetry_stopped_late")

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
            try:
                self._log.reopen()
                if self._config.api_keys is not None and isinstance(self._keys, dict):
                    fresh = read_keys(self._config.api_keys)
                    self._keys.clear()
                    self._keys.update(fresh)
                self._server.renew_certificate()
            except EdgekitError as error:
                self._log.event("reload_failed", error=type(error).__name__, message=str(error))
            await self.models.swap()
            self._notifier.ready()

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
