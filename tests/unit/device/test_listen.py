"""The socket that a server listens on."""

from __future__ import annotations

import asyncio
import socket

from device.agent.server import listen


def test_tokens_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm is off on what is accepted: else each small piece may wait for 40 ms."""
    found: list[int] = []

    async def accept() -> None:
        def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        async with await asyncio.start_server(note, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await reader.read()
            writer.close()
            await writer.wait_closed()

    asyncio.run(accept())
    assert [bool(value) for value in found] == [True]
