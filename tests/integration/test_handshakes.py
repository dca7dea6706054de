"""Clients that open a TLS connection and stall, beside one that is honest."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from agent_cases import Agent, agent, make_certificates, tls_of, wait_for_port

from device.api.limits import Limits

HELLO = b"\x16\x03\x01\x02\x00\x01"
"""The beginning of a handshake."""
FILES = 160
"""Of the agent; fewer than the clients that stall."""


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Agent]:
    """Serve HTTPS."""
    make_certificates(tmp_path)
    with agent(tmp_path, tls_of(tmp_path)) as running:
        wait_for_port(running.port)
        yield running


@contextlib.contextmanager
def opened(port: int, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections that send some bytes at most."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.sendall(first)
            made.append(one)
        yield made


def seconds(found: Agent, context: ssl.SSLContext) -> float:
    """Return how long an honest client waits, connection and all."""
    began = time.monotonic()
    answer = httpx.get(f"https://127.0.0.1:{found.port}/healthz", verify=context, timeout=20)
    assert answer.status_code == 200
    return time.monotonic() - began


def left(stalling: list[socket.socket], within_s: float) -> int:
    """Return how many of some connections the other side closes in a time."""
    waiting, end = {one.fileno() for one in stalling}, time.monotonic() + within_s
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN)
    while waiting and (rest := end - time.monotonic()) > 0:
        for number, _ in poll.poll(rest * 1000):
            poll.unregister(number)
            waiting.discard(number)
    return len(stalling) - len(waiting)


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", HELLO])
def test_who_never_ends_a_handshake_is_left(found: Agent, tmp_path: Path, first: bytes) -> None:
    """Four hundred, more than the process may have files: an honest client is served at once."""
    resource.prlimit(found.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    seconds(found, context)
    with opened(found.port, 400, first) as stalling:
        assert max(seconds(found, context) for _ in range(10)) < 2
        files = len(list(Path(f"/proc/{found.process.pid}/fd").iterdir()))
        assert files < 120  # most were left to let others in
        assert left(stalling, 15) == 400
    assert len(list(Path(f"/proc/{found.process.pid}/fd").iterdir())) < 40
    seconds(found, context)


def test_a_handshake_that_fails_harms_nobody(
    found: Agent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Plain HTTP, garbage, a client that resets: each is left, nothing is printed."""
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    for sent in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", bytes(300)):
        with opened(found.port, 3, sent) as wrong:
            assert left(wrong, 5) == 3
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{found.port}/healthz")  # it does not trust the certificate
    seconds(found, context)
    found.process.terminate()
    assert found.process.wait(20) == 0
    assert capfd.readouterr().err == ""


def test_it_ends_while_handshakes_stall(found: Agent) -> None:
    """SIGTERM waits for none of them."""
    with opened(found.port, 20):
        time.sleep(0.2)
        began = time.monotonic()
        found.process.terminate()
        assert found.process.wait(20) == 0
        assert time.monotonic() - began < 3


@pytest.mark.slow
def test_who_agrees_and_then_says_nothing_holds_no_place(found: Agent, tmp_path: Path) -> None:
    """As many as there may be, who do not even answer TLS' farewell: others are served."""
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with contextlib.ExitStack() as stack:
        for _ in range(Limits().connections):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", found.port)))
            stack.enter_context(context.wrap_socket(one, server_hostname="localhost"))
        stop = time.monotonic() + Limits().request_s + 3
        while time.monotonic() < stop:
            assert seconds(found, context) < 2
            time.sleep(0.2)
