"""Where the agent listens."""

from __future__ import annotations

import socket

import pytest

from device.agent.server import listen
from edgekit.errors import EngineError


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_send_at_once(host: str) -> None:
    """Nagle's algorithm is off: else an answer's body waits for its head's acknowledgement."""
    with (
        listen(host, 0) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_taken_is_told() -> None:
    """With the address, and what to do."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"cannot listen on 127.0.0.1:{port}: .* Choose"):
            listen("127.0.0.1", port)
