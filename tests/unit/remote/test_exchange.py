"""A service that misbehaves: it is left in its time, and nothing on the device is disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mqtt_certificates import Authority
from remote_cases import KEY, Device1, answer, configuration, outcomes, signed
from service_cases import Service, fleet_service
from starlette.types import ASGIApp, Receive, Scope, Send

from device.remote.config import FleetConfig, parse_fleet
from device.remote.errors import RefusedError
from device.remote.exchange import Exchange
from device.remote.puller import Puller
from device.remote.remote import MAX_ANSWER_BYTES, Remote

HOT: dict[str, Any] = {"alarms": {"temperature": {"raise_above": 95.0}}}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with fleet_service(tmp_path) as running:
        yield running


@pytest.fixture
def device(tmp_path: Path) -> Device1:
    return Device1(tmp_path / "remote.json")


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/v1/diagnostics/c-1",
        "http://127.0.0.1/v1/diagnostics/c-1",
        "https://127.0.0.1/v1/diagnostics/c-1",
        "https://user@127.0.0.1:{port}/x",
        "https://127.0.0.1:{port}@evil.example/",
        "https://127.0.0.1:99999/",
        "https://[::1/",
        "ftp://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "",
    ],
)
def test_a_bundle_goes_only_where_the_owner_lets_it(service: Service, url: str) -> None:
    """A signature does not open another host, another port or another scheme."""
    exchange = Exchange(service.config())
    with pytest.raises(RefusedError) as caught:
        asyncio.run(exchange.upload(url.format(port=service.port), b"x"))
    assert caught.value.reason == "setting"


Behave = Callable[[ssl.SSLSocket], None]


@contextlib.contextmanager
def raw_service(folder: Path, behave: Behave) -> Iterator[FleetConfig]:
    """Run a TLS server that does what it is told once a request has come."""
    authority = Authority(folder / "raw", "devices")
    server, device = authority.issue("localhost", server=True), authority.issue("a/device/b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            taken, _ = listener.accept()
            with context.wrap_socket(taken, server_side=True) as connection:
                connection.recv(65536)
                behave(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield parse_fleet(
            {
                "url": f"https://127.0.0.1:{listener.getsockname()[1]}",
                "tenant": "acme",
                "device": "orin-1",
                "certificate": str(device.certificate),
                "key": str(device.key),
                "ca_file": str(authority.certificate),
                "timeout_s": 0.6,
            }
        )
    finally:
        listener.close()
        thread.join(10)


def slow(connection: ssl.SSLSocket) -> None:
    """A byte now and then: each is in time, the whole never is."""
    for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n" * 9:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def silent(connection: ssl.SSLSocket) -> None:
    time.sleep(1)
    connection.close()


def endless(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"%x\r\n%s\r\n" % (65536, b" " * 65536)
    for _ in range(MAX_ANSWER_BYTES // 65536 + 64):
        connection.sendall(chunk)


def garbage(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")


def cut(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{")


def away(connection: ssl.SSLSocket) -> None:
    connection.sendall(
        b"HTTP/1.1 302 Found\r\nlocation: https://evil.example/\r\ncontent-length: 0\r\n\r\n"
    )


def bomb(connection: ssl.SSLSocket) -> None:
    """What says it is compressed is taken as it came."""
    import gzip

    body = gzip.compress(b" " * (64 << 20))
    head = f"content-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + head.encode() + body)


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (slow, "slow"),
        (silent, "slow"),
        (endless, "too_large"),
        (garbage, "unreachable"),
        (cut, "unreachable"),
        (away, "unreachable"),
        (bomb, "malformed"),
    ],
)
def test_a_service_that_misbehaves_disturbs_nothing(
    tmp_path: Path, device: Device1, behave: Behave, reason: str
) -> None:
    """Slow, silent, endless, broken or elsewhere: left in its time, counted, nothing changed."""
    remote = device.start()
    remote.take(answer(signed(configuration(HOT))))
    before, held = device.path.read_bytes(), list(device.agent.held)
    with raw_service(tmp_path, behave) as config:
        begun_s = time.monotonic()
        asyncio.run(Puller(remote, Exchange(config), {}, 3600).pull())
        assert time.monotonic() - begun_s < 3
    assert outcomes(remote) == {"applied": 1, reason: 1}
    assert (device.path.read_bytes(), device.agent.held) == (before, held)


def test_a_service_of_another_authority_is_not_believed(
    tmp_path: Path, service: Service, device: Device1
) -> None:
    """The device asks only who its own file of authorities proves; it says nothing to others."""
    other = Authority(tmp_path / "other", "other")
    remote = device.start()
    config = service.config(ca_file=str(other.certificate))
    asyncio.run(Puller(remote, Exchange(config), {}, 3600).pull())
    assert outcomes(remote) == {"unreachable": 1}


def test_a_missing_certificate_is_told_and_looked_for_again(
    service: Service, device: Device1
) -> None:
    """A certificate that is being renewed is no reason to stop."""
    remote, config = device.start(), service.config()
    key = Path(config.key)
    key.rename(key.with_suffix(".away"))
    puller = Puller(remote, Exchange(config), {}, 3600)
    asyncio.run(puller.pull())
    assert "TLS cannot use" in str(remote.details()["remote_refused"])
    key.with_suffix(".away").rename(key)
    service.publish(signed(configuration(HOT), KEY))
    asyncio.run(puller.pull())
    assert outcomes(remote) == {"unreachable": 1, "applied": 1}


def test_a_service_that_fails_is_unreachable(tmp_path: Path, device: Device1) -> None:
    """A 503 is not a document, whatever its body says."""

    def failing(_: ASGIApp) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            del scope, receive
            body = answer(signed(configuration(HOT)))
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": body})

        return app

    remote: Remote = device.start()
    with fleet_service(tmp_path, failing) as service:
        asyncio.run(Puller(remote, Exchange(service.config()), {}, 3600).pull())
    assert outcomes(remote) == {"unreachable": 1}
