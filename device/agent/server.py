"""uvicorn with what the agent adds: TLS of its own, hooks when it begins and before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from device.agent.config import AgentConfig
from device.agent.handshakes import Handshakes
from device.api.limits import Limits, guarded
from edgekit.errors import EngineError
from edgekit.tls import server_context

FAREWELL_S: Final = 5
"""After ``drain_s`` requests are told that they are cut off, in this time."""
TICK_S: Final = 0.25
"""After a signal the end begins this late at most."""

Hook = Callable[[], Awaitable[None]]


class AgentServer(uvicorn.Server):
    """A server that tells when it listens and when it is to end.

    Args:
        app: What it serves.
        config: Where and how.
        begun: Called once it listens.
        ending: Called before it takes no more connections.
    """

    def __init__(self, app: ASGIApp, config: AgentConfig, begun: Hook, ending: Hook) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,  # the agent's own has no addresses beyond the API's
                lifespan="on",
                http=guarded(),
                ws="none",
                timeout_graceful_shutdown=math.ceil(config.drain_s) + FAREWELL_S,
            )
        )
        self._agent, self._begun, self._ending = config, begun, ending
        context = tls_context(config)
        self._tls = None if context is None else Handshakes(self._protocol, context, Limits())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets if self._tls is None else [])
        for listener in sockets or []:
            if self._tls is not None:
                self._tls.start(listener, self.config.backlog)
        await self._begun()

    async def main_loop(self) -> None:
        """Wait for the end; uvicorn's own loop wakes up ten times a second, most of an idle CPU."""
        while not await self.on_tick(0):
            if self._tls is not None:
                self._tls.check()
            await asyncio.sleep(TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs end."""
        await self._ending()
        if self._tls is not None:
            await self._tls.stop()
        await super().shutdown(sockets)

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        # Once all is ended uvicorn raises the signal that ended it again.
        with contextlib.suppress(KeyboardInterrupt):
            self.run(sockets=[listener])

    def renew_certificate(self) -> None:
        """Read certificate, key and authorities again, for connections to come.

        Raises:
            ConfigError: One cannot be read; the old ones stay.
        """
        context = tls_context(self._agent)
        if self._tls is not None and context is not None:
            self._tls.context = context

    def _protocol(self) -> asyncio.Protocol:
        """Return what a connection is handed to, as uvicorn's own ``startup`` makes it."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def tls_context(config: AgentConfig) -> ssl.SSLContext | None:
    """Return what a configuration says of TLS; None where it wants none.

    Raises:
        ConfigError: A file cannot be read, is none, or the key is another certificate's.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return server_context(config.tls_certificate, config.tls_key, config.tls_client_ca)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        EngineError: The address is none of this machine's, or is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise EngineError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "Choose another --host or --port",
        ) from error
    # Connections inherit it. asyncio sets it only where the listener was made with a protocol: an
    # answer's head and body are two writes, and the second waited 40 ms for the first's ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
