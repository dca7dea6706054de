"""Clients that leave, stall and send garbage: the server goes on, and nobody else notices."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from serve_cases import NAME, SUM, build_example, post, served, settle

from device.api.service import Service


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_example(tmp_path_factory.mktemp("serve"))


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


def misbehave(address: str, kind: int, seed: int) -> None:
    """Send garbage, half a body, a byte now and then, or ask and leave."""
    own, parts = random.Random(seed), urlsplit(address)
    body = json.dumps({"model": NAME, "messages": SUM, "stream": own.random() < 0.5}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    whole = head.encode() + body
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as caller:
        if kind == 0:
            caller.sendall(own.randbytes(200))
        elif kind == 1:
            caller.sendall(whole[: len(whole) - len(body) // 2])
            time.sleep(own.random() / 5)
        elif kind == 2:
            for byte in whole[:40]:
                caller.sendall(bytes([byte]))
                time.sleep(0.002)
        else:
            caller.sendall(whole)
            time.sleep(own.random() / 20)


def test_two_hundred_random_clients_harm_nobody(server: tuple[str, Service]) -> None:
    """They stall, leave, send garbage and half of what they promised: who behaves is answered."""
    chance, right = random.Random(11), list[bool]()

    def behave() -> None:
        done = post(server, {"model": NAME, "messages": SUM, "temperature": 0})
        right.append(done.json()["choices"][0]["message"]["content"] == "58 + 67 = 125")

    threads = []
    for number in range(200):
        kind = chance.randrange(5)
        target, arguments = (behave, ()) if kind == 4 else (misbehave, (server[0], kind, number))
        threads.append(threading.Thread(target=target, args=arguments))
    for start in range(0, 200, 25):
        for thread in threads[start : start + 25]:
            thread.start()
        for thread in threads[start : start + 25]:
            thread.join(60)
    assert len(right) > 20
    assert all(right)
    settle(server[1])
    assert httpx.get(f"{server[0]}/readyz").status_code == 200
