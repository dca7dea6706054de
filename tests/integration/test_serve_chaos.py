"""Clients that leave, stall and send garbage: the server goes on, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from chaos_clients import WAYS, crowd
from serve_cases import NAME, SUM, connect, post, raw, served, settle, wait_until

from device.api import aside
from device.api.limits import Limits
from device.api.service import Service

LONG = "lorem ipsum dolor " * 150_000


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[tuple[str, Service]]:
    with served(bundle) as found:
        yield found


def test_a_client_that_leaves_frees_its_slot(server: tuple[str, Service]) -> None:
    """Streamed or not, in the middle or while it waits; another's answer is whole."""
    host, port = urlsplit(server[0]).hostname, urlsplit(server[0]).port
    base = {"model": NAME, "messages": SUM, "temperature": 1.5, "max_tokens": 400}
    left = []
    for number in range(12):
        data = json.dumps({**base, "stream": number % 2 == 0}).encode()
        caller = socket.create_connection((host, port))
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        caller.sendall(head.encode() + data)
        left.append(caller)
    answer = post(server, {"model": NAME, "messages": SUM, "temperature": 0})
    time.sleep(0.05)
    for caller in left:
        caller.close()
    assert answer.json()["choices"][0]["message"]["content"] == "58 + 67 = 125"
    settle(server[1])


def held() -> tuple[int, int, int]:
    """Return this process's threads but those kept for long work, files and unfinished tasks."""
    gc.collect()
    # Of their type, not by isinstance: that asks objects of others for their class, and some warn.
    made = [one for one in gc.get_objects() if issubclass(type(one), asyncio.Task)]
    tasks = [one for one in made if not one.done()]
    threads = [one for one in threading.enumerate() if not one.name.startswith(aside.NAME)]
    return len(threads), len(list(Path("/proc/self/fd").iterdir())), len(tasks)


def test_random_clients_harm_nobody(bundle: Path) -> None:
    """Every way to misbehave, ten times: who behaves is answered right, and nothing is left."""
    with served(bundle, limits=Limits(request_s=1, unread_s=1)) as (address, service):
        before = held()
        told = asyncio.run(
            crowd(address, range(10 * len(WAYS)), at_once=40, patience_s=0.3, beside=8)
        )
        assert len(told) >= 8
        assert not [wrong for wrong in told if wrong]
        settle(service)
        wait_until(lambda: held() <= before, what=f"{held()} are more than {before}")
        assert httpx.get(f"{address}/readyz").status_code == 200


def send_chunks(caller: socket.socket, within_s: float) -> None:
    """Send chunks of a body that has no end."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        caller.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        time.sleep(0.05)


def test_clients_that_stall_are_left(bundle: Path) -> None:
    """No head, half of one, half a body, and a body that goes on after the answer."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    with served(bundle, limits=Limits(request_s=0.5)) as server:
        begun = time.monotonic()
        assert raw(server[0], b"") == b""
        for sent in (head, head + b'content-length: 90\r\n\r\n{"model": "x", '):
            answer = raw(server[0], sent)
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert b'"did not arrive' in answer.replace(b"the request ", b"")
        assert 1.5 <= time.monotonic() - begun < 6
        with connect(server[0]) as caller:
            caller.sendall(
                b"GET /healthz HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            assert caller.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                send_chunks(caller, within_s=5)


def test_a_long_body_has_more_time(bundle: Path) -> None:
    """What comes at the rate that is asked for is not late, however long it takes."""
    body = json.dumps(
        {"model": NAME, "messages": SUM, "max_tokens": 1, "user": "x" * 4000}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    limits = Limits(request_s=0.4, bytes_per_s=2000)
    with served(bundle, limits=limits) as server, connect(server[0]) as caller:
        caller.sendall(head.encode())
        for start in range(0, len(body), 300):
            caller.sendall(body[start : start + 300])
            time.sleep(0.1)
        assert caller.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_newcomer_gets_the_place_of_one_that_waits(bundle: Path) -> None:
    """Silent connections, more than there may be, lock nobody out; they go oldest first."""
    with served(bundle, limits=Limits(connections=10)) as server, contextlib.ExitStack() as opened:
        silent = [opened.enter_context(connect(server[0])) for _ in range(25)]
        for _ in range(5):
            answer = post(server, {"model": NAME, "messages": SUM, "temperature": 0})
            assert answer.json()["choices"][0]["message"]["content"] == "58 + 67 = 125"
        assert silent[0].recv(1) == b""
        silent[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)


def test_places_of_those_who_are_answered_are_kept(bundle: Path) -> None:
    """A newcomer is told to come back when all connections are answered, and no answer is lost."""
    with served(bundle, slots=2, limits=Limits(connections=2)) as server:
        body = {
            "model": NAME,
            "prompt": "To be",
            "temperature": 0,
            "max_tokens": 400,
            "stream": True,
        }
        address = f"{server[0]}/v1/completions"
        with contextlib.ExitStack() as streams:
            answers = [
                streams.enter_context(httpx.stream("POST", address, json=body, timeout=30))
                for _ in range(2)
            ]
            late = post(server, {"model": NAME, "messages": SUM})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "too_many_connections")
            assert late.headers["retry-after"] == "1"
            assert [list(answer.iter_lines())[-2] for answer in answers] == ["data: [DONE]"] * 2


def test_a_client_that_does_not_read_is_left(bundle: Path) -> None:
    """Its connection is reset while the answer still waits for it, and its slots are free."""
    asked = {"prompt": "To be", "n": 4, "max_tokens": 400, "temperature": 2, "logprobs": 20}
    body = json.dumps({"model": NAME, "stream": True, **asked}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with served(bundle, limits=Limits(unread_s=0.5), send_buffer=4096) as server:
        with connect(server[0]) as caller:
            caller.sendall(head.encode() + body)
            left = select.poll()
            left.register(caller, 0)  # hang-ups are always told
            assert left.poll(20_000), "it is not left"
        settle(server[1])
        assert 'finished_reason="cancelled"' in httpx.get(f"{server[0]}/metrics").text


def test_bytes_that_are_no_text_are_a_bad_request(server: tuple[str, Service]) -> None:
    """They are the client's fault, not the server's."""
    for body in (b'{"model": "\xff"}', b'{"model": "\\ud800", "messages": []}', b"[" * 100_000):
        assert post(server, body).status_code == 400
    lone = {"model": NAME, "messages": [{"role": "user", "content": "\ud800"}]}
    assert post(server, lone).status_code == 400


def test_leaving_in_a_body_is_no_fault_of_the_server(
    server: tuple[str, Service], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged, and no 500 is counted."""

    def faults() -> list[str]:
        lines = httpx.get(f"{server[0]}/metrics").text.splitlines()
        return [line for line in lines if "refused_total" in line and 'status="500"' in line]

    before = faults()
    with connect(server[0]) as caller:
        caller.sendall(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        time.sleep(0.1)
    time.sleep(0.2)
    assert faults() == before
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, 400),
        ("/v1/chat/completions", {"messages": SUM * 60_000}, 400),
        ("/v1/completions", {"prompt": LONG}, 400),
        ("/tokenize", {"prompt": LONG}, 200),
    ],
)
def test_a_prompt_of_megabytes_holds_nobody_up(
    server: tuple[str, Service], path: str, more: dict[str, Any], status: int
) -> None:
    """While it is written out and cut into tokens, others are answered as ever."""
    found: list[int] = []
    body = {"model": NAME, **more}
    sender = threading.Thread(target=lambda: found.append(post(server, body, path).status_code))
    longest_s = 0.0
    with httpx.Client(base_url=server[0], timeout=30) as caller:
        sender.start()
        while sender.is_alive():
            began_s = time.monotonic()
            assert caller.get("/healthz").status_code == 200
            longest_s = max(longest_s, time.monotonic() - began_s)
    sender.join()
    assert found == [status]
    assert longest_s < 1, "some seconds are what the text takes"
