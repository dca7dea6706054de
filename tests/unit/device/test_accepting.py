"""What accepts connections: whoever waits for it learns that it has ended."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest

from device.agent.handshakes import Handshakes
from device.agent.server import listen
from device.api.limits import Limits


def test_a_fault_in_accepting_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts nothing any more must not go on as if it were well."""

    async def broken(listener: socket.socket) -> Any:
        raise ZeroDivisionError(listener)

    async def run() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", broken)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        door = Handshakes(asyncio.Protocol, context, Limits())
        with listen("127.0.0.1", 0) as listener:
            door.start(listener, 5)
            door.check()  # nothing has happened yet
            await asyncio.sleep(0.05)
            with pytest.raises(ZeroDivisionError):
                door.check()
            await door.stop()

    asyncio.run(run())
