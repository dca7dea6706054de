"""Clients that misbehave in every way a socket allows, drawn at random; and some that do not.

Each misbehaving one is a coroutine of an open connection and a source of chance. What the server
does to it is its own affair: only a server that answers others wrongly, or not at all, is at fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from serve_cases import NAME, SUM

SUMS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "reasoning_dev.jsonl").read_text().splitlines()
]


@dataclass(frozen=True, slots=True)
class Line:
    """A connection of a client that misbehaves.

    Attributes:
        reader: What the server says.
        writer: What it is told.
        chance: Of this client.
        patience_s: How long it stalls at most.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    chance: random.Random
    patience_s: float

    async def say(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def drip(self, data: bytes) -> None:
        """Send a byte now and then, until it has had enough of it."""
        for byte in data[: self.chance.randrange(5, 60)]:
            await self.say(bytes([byte]))
            await asyncio.sleep(self.patience_s / 60)

    async def stall(self) -> None:
        """Do nothing for a while."""
        await asyncio.sleep(self.chance.random() * self.patience_s)


def request(
    chance: random.Random, *, head: Sequence[str] = (), path: str = "chat/completions"
) -> tuple[bytes, bytes]:
    """Return head and body of a request that would be answered at some length."""
    body = json.dumps(
        {
            "model": NAME,
            "messages": SUM,
            "stream": chance.random() < 0.5,
            "temperature": 1.5,
            "max_tokens": chance.randrange(1, 200),
        }
    ).encode()
    lines = list(head) or [f"content-length: {len(body)}"]
    start = [f"POST /v1/{path} HTTP/1.1", "host: x", *lines, "", ""]
    return "\r\n".join(start).encode(), body


async def say_nothing(line: Line) -> None:
    await line.stall()


async def send_garbage(line: Line) -> None:
    await line.say(line.chance.randbytes(line.chance.randrange(1, 5000)))
    await line.stall()


async def break_off_the_head(line: Line) -> None:
    head, _ = request(line.chance)
    await line.say(head[: line.chance.randrange(1, len(head) - 1)])
    await line.stall()


async def drip_the_head(line: Line) -> None:
    await line.drip(request(line.chance)[0])


async def drip_the_body(line: Line) -> None:
    head, body = request(line.chance)
    await line.say(head)
    await line.drip(body)


async def break_off_the_body(line: Line) -> None:
    head, body = request(line.chance)
    await line.say(head + body[: line.chance.randrange(len(body))])
    await line.stall()


async def leave_at_once(line: Line) -> None:
    await line.say(b"".join(request(line.chance)))


async def leave_in_the_middle(line: Line) -> None:
    await line.say(b"".join(request(line.chance)))
    await line.reader.read(line.chance.randrange(1, 2000))


async def read_nothing(line: Line) -> None:
    line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, too
    await line.say(b"".join(request(line.chance)))
    await line.stall()


async def close_one_side(line: Line) -> None:
    await line.say(b"".join(request(line.chance)))
    line.writer.write_eof()
    await line.stall()


async def send_too_much(line: Line) -> None:
    await line.say(request(line.chance, head=["content-length: 9000000"])[0])
    for _ in range(9):
        await line.say(b" " * 1_000_000)


async def send_a_long_head(line: Line) -> None:
    await line.say(request(line.chance)[0][:-2] + b"x: " + b"y" * 200_000 + b"\r\n\r\n")
    await line.stall()


async def promise_another_length(line: Line) -> None:
    _, body = request(line.chance)
    length = len(body) + line.chance.choice([-20, -1, 1, 20])
    await line.say(request(line.chance, head=[f"content-length: {length}"])[0] + body)
    await line.stall()


async def send_chunks_without_end(line: Line) -> None:
    await line.say(request(line.chance, head=["transfer-encoding: chunked"])[0])
    for _ in range(line.chance.randrange(2, 20)):
        await line.say(b"5\r\n     \r\n")
        await asyncio.sleep(line.patience_s / 20)


async def send_bad_chunks(line: Line) -> None:
    await line.say(request(line.chance, head=["transfer-encoding: chunked"])[0] + b"5\r\n{")
    await line.say(line.chance.randbytes(100))
    await line.stall()


async def smuggle(line: Line) -> None:
    head = [
        "content-length: 5",
        line.chance.choice(["content-length: 6", "transfer-encoding: chunked"]),
    ]
    await line.say(b"".join(request(line.chance, head=head)) + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    await line.stall()


async def ask_many_at_once(line: Line) -> None:
    for _ in range(3):
        await line.say(b"".join(request(line.chance)))
    await line.reader.read(500)
    await line.stall()


async def send_other_json(line: Line) -> None:
    long = {"model": NAME, "messages": [{"role": "user", "content": "x" * 50_000}]}
    body = line.chance.choice(
        [
            b"[" * 100_000,
            b'{"model": "\xff\xfe"}',
            b'{"model": "\\ud800", "messages": []}',
            b'{"temperature": 1e999, "seed": ' + b"9" * 5000 + b"}",
            json.dumps(long).encode(),
            json.dumps({"model": NAME, "messages": SUM, "stop": ["a"] * 1000}).encode(),
        ]
    )
    await line.say(request(line.chance, head=[f"content-length: {len(body)}"])[0] + body)
    await line.reader.read(100)


async def ask_for_other_things(line: Line) -> None:
    first = line.chance.choice(
        [
            "TRACE / HTTP/1.1",
            "GET /%00/../../etc/passwd HTTP/1.1",
            "PRI * HTTP/2.0",
            "GET / HTTP/0.9",
            "CONNECT x:1 HTTP/1.1",
            "GET /metrics HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade",
        ]
    )
    await line.say(f"{first}\r\nhost: x\r\n\r\n".encode())
    await line.reader.read(100)


WAYS: tuple[Callable[[Line], Awaitable[None]], ...] = (
    say_nothing, send_garbage, break_off_the_head, drip_the_head, drip_the_body, break_off_the_body,
    leave_at_once, leave_in_the_middle, read_nothing, close_one_side, send_too_much,
    send_a_long_head, promise_another_length, send_chunks_without_end, send_bad_chunks, smuggle,
    ask_many_at_once, send_other_json, ask_for_other_things,
)  # fmt: skip


@contextlib.asynccontextmanager
async def _line(address: str, chance: random.Random, patience_s: float) -> AsyncIterator[Line]:
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    if chance.random() < 0.3:  # a reset instead of an orderly end
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    try:
        yield Line(reader, writer, chance, patience_s)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def misbehave(address: str, number: int, patience_s: float) -> None:
    """Be one client: which way, and all of its chance, are functions of its number."""
    chance = random.Random(number)
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        async with _line(address, chance, patience_s) as line:
            await asyncio.wait_for(WAYS[number % len(WAYS)](line), 60)


async def behave(client: httpx.AsyncClient, number: int) -> str | None:
    """Ask for a sum, whole or streamed; returns what was wrong with the answer."""
    row = SUMS[number % len(SUMS)]
    messages = [{"role": "user", "content": row["prompt"]}]
    body = {"model": NAME, "messages": messages, "temperature": 0, "stream": number % 2 == 0}
    answer = await client.post("/v1/chat/completions", json=body)
    if not answer.is_success:
        return f"{answer.status_code}: {answer.text}"
    if number % 2:
        text = answer.json()["choices"][0]["message"]["content"]
    else:
        lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
        text = "".join(delta.get("content", "") for delta in deltas)
    return None if text == row["answer"] else f"{row['prompt']}: {text}"


async def crowd(
    address: str, numbers: range, *, at_once: int, patience_s: float, beside: int = 4
) -> list[str | None]:
    """Let misbehaving clients in, some at once, and clients that behave beside them all the while.

    Returns:
        What was wrong with each answer that a client who behaved got; None if it was right.
    """
    places, told, busy = asyncio.Semaphore(at_once), list[str | None](), True

    async def one(number: int) -> None:
        async with places:
            await misbehave(address, number, patience_s)

    async def good(first: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            asked = first
            while busy or asked == first:
                told.append(await behave(client, asked))
                asked += beside

    asking = [asyncio.create_task(good(number)) for number in range(beside)]
    await asyncio.gather(*(one(number) for number in numbers))
    busy = False
    await asyncio.gather(*asking)
    return told
