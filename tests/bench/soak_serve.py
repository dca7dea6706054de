"""Thousands of requests of all kinds to one server: does its memory stay where it is?

    python tests/bench/soak_serve.py BUNDLE --requests 10000 --json soak.json

The server is ``edgekit serve`` in a process of its own. Some clients ask short questions: whole,
streamed, left in the middle, refused, held to a schema, with log probabilities, with penalties.
Each answer has to be what its kind says. Resident memory, threads and files are read from ``/proc``
after every hundredth request. Told are the means of the first and the last thousand, and the slope
of a line through all but the first fifth: allocators and caches fill at first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import report

READY_S = 60.0
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["n"],
    "properties": {"n": {"type": "integer"}},
}  # fmt: skip
HELD = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
MORE: dict[int, dict[str, Any]] = {
    3: {"foo": 1},
    5: {"model": "x"},
    6: {"response_format": HELD},
    8: {"logprobs": True, "top_logprobs": 3},
    9: {"n": 2, "frequency_penalty": 0.5},
}
"""What a tenth of the requests asks for besides; 3 and 5 are refused."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    resident_mib: float
    threads: int
    files: int


def held(pid: int) -> Held:
    """Read what a process holds."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    resident = int(status["VmRSS"].split()[0]) / 1024
    return Held(resident, int(status["Threads"]), len(list(Path(f"/proc/{pid}/fd").iterdir())))


@contextlib.contextmanager
def serving(bundle: Path, *options: str, log: Path | None = None) -> Iterator[tuple[str, int]]:
    """Serve a bundle in a process of its own; yields its address and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--port", port, *options]
    with (log or Path("/dev/null")).open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process)
        yield address, process.pid
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        process.wait(60)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server is not ready: exit status {process.poll()}")


class Client:
    """Asks one question after the other, a kind after the other.

    Args:
        http: How it asks.
        model: Whom.
    """

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http, self._model = http, model

    async def ask(self, number: int) -> None:
        """Ask the question of this number; its answer has to be of its kind."""
        kind = number % 10
        if kind in {1, 4, 7}:
            await self._stream(number, leave=kind == 7)
            return
        body = self._body(number) | MORE.get(kind, {})
        answer = await self._http.post("/v1/chat/completions", json=body)
        assert answer.status_code == {3: 400, 5: 404}.get(kind, 200), answer.text
        if answer.is_success:
            assert answer.json()["usage"]["completion_tokens"] > 0

    async def _stream(self, number: int, *, leave: bool) -> None:
        body = self._body(number) | {"stream": True}
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if leave or line == "data: [DONE]":
                    return
        raise AssertionError("a stream ended before its end")

    def _body(self, number: int) -> dict[str, Any]:
        text = f"What is {number % 97} + {number % 89}? {'x' * (number % 50)}"
        return {
            "model": self._model, "messages": [{"role": "user", "content": text}], "seed": number,
            "max_tokens": 4 + number % 9,
        }  # fmt: skip


async def soak(address: str, pid: int, requests: int, clients: int) -> list[Held]:
    """Ask; returns what the server held after each hundredth request."""
    numbers, found = itertools.count(), [held(pid)]

    async def one(client: Client) -> None:
        while (number := next(numbers)) < requests:
            await client.ask(number)
            if number % 100 == 99:
                found.append(held(pid))

    async with httpx.AsyncClient(base_url=address, timeout=120) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        await asyncio.gather(*(one(Client(http, model)) for _ in range(clients)))
    return found


def told(found: list[Held]) -> dict[str, Any]:
    """Return the figures of a soak."""
    resident = np.array([one.resident_mib for one in found[1:]])
    late = resident[len(resident) // 5 :]
    slope = np.polyfit(np.arange(len(late)) / 10, late, 1)[0]
    return {
        "requests": 100 * len(resident),
        "resident_first_thousand_mib": float(resident[:10].mean()),
        "resident_last_thousand_mib": float(resident[-10:].mean()),
        "slope_mib_per_1000": float(slope),
        "threads": [found[10].threads, found[-1].threads],
        "files": [found[10].files, found[-1].files],
    }


def main() -> int:
    """Soak a server and print what it held."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with serving(options.bundle) as (address, pid):
        begun = time.monotonic()
        found = asyncio.run(soak(address, pid, options.requests, options.clients))
        figures = {**told(found), "seconds": time.monotonic() - begun}
    print(json.dumps(figures, indent=2))
    if options.json:
        samples = [[one.resident_mib, one.threads, one.files] for one in found]
        written = {"machine": report.machine(), **figures, "samples": samples}
        report.write_json(options.json, written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
