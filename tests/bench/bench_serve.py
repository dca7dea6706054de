r"""OpenAI servers under load: tokens/s and time to first token at some numbers of streams.

    python tests/bench/bench_serve.py --bare B \\
        --server "edgekit={python} -m edgekit serve B --port {port} --max-sequences 8" \\
        --server "llama.cpp=llama-server -m M.gguf --port {port} -np 8 -c 16384 -t 2" --rounds 3

Each server is started on a free loopback port, asked, and stopped; they take turns, one alone at
a time. Every request is a streamed completion of one length, greedy, with a prompt of its own; each
stream asks ``--each`` of them, one after the other. ``tokens/s`` are all answers' tokens by the
time from the first question to the last token, prompts included. ``prefix`` asks with 1000 tokens
in common, once to fill the cache and then each with a question of its own. ``--bare BUNDLE`` times
the same prompts and steps on the session alone, which says what the server around it costs.
``--load 0.5`` asks at half of what the server can do, at random times, and tells quantiles of the
time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import measure
import numpy as np
import open_load
import report
from measure import MIB

READY_S = 120.0
ONE_EACH = httpx.Limits(max_keepalive_connections=0)
"""A connection a request: llama.cpp's server closes idle ones just as they are used again."""
PREFIX_WORDS = 1000


@dataclass(frozen=True, slots=True)
class Server:
    """A way to serve a model."""

    name: str
    command: str


@dataclass(frozen=True, slots=True)
class Stream:
    """What one client saw.

    Attributes:
        begun_s: When it asked.
        times_s: When each piece came.
        tokens: As the server's usage says.
    """

    begun_s: float
    times_s: tuple[float, ...]
    tokens: int

    @property
    def first_s(self) -> float:
        """Time to the first token."""
        return self.times_s[0] - self.begun_s


async def ask(client: httpx.AsyncClient, model: str, prompt: str, tokens: int) -> Stream:
    """Stream one completion to its end."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    begun_s, times, counted = time.perf_counter(), [], 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise measure.BenchError(f"{answer.status_code}: {(await answer.aread())[:200]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if any(choice.get("finish_reason") is None for choice in chunk["choices"]):
                times.append(time.perf_counter())
            usage = chunk.get("usage") or {}
            counted = usage.get("completion_tokens", counted)
    if not times:
        raise measure.BenchError("nothing came before the end: give the model a whole tokenizer")
    return Stream(begun_s, tuple(times), counted)


def prompts(streams: int, words: int, seed: int, shared: str = "") -> list[str]:
    """Return prompts of about as many tokens, none of which begins as another."""
    random = np.random.default_rng(seed)
    return [
        shared + " ".join(str(number) for number in random.integers(100, 999, words // 4))
        for _ in range(streams)
    ]


async def load(base: str, streams: int, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Ask with some streams at once; returns their rates."""
    async with httpx.AsyncClient(base_url=base, timeout=600, limits=ONE_EACH) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def stream(texts: list[str]) -> list[Stream]:
            return [await ask(client, model, text, options.tokens) for text in texts]

        # Another seed for each number of streams: no server's prefix cache has seen a prompt.
        texts = prompts(streams * options.each, options.prompt, 1000 * seed + streams)
        parts = [texts[number::streams] for number in range(streams)]
        found = list(itertools.chain(*await asyncio.gather(*map(stream, parts))))
        begun = min(answer.begun_s for answer in found)
        end = max(answer.times_s[-1] for answer in found)
        return {
            "streams": streams,
            "tokens_per_s": sum(answer.tokens for answer in found) / (end - begun),
            "first_token_s": float(np.median([answer.first_s for answer in found])),
            "first_token_worst_s": max(answer.first_s for answer in found),
        }


async def prefix(base: str, seed: int) -> dict[str, Any]:
    """Ask with a long beginning in common, one after the other."""
    (shared,) = prompts(1, PREFIX_WORDS, 99 + seed)
    async with httpx.AsyncClient(base_url=base, timeout=600, limits=ONE_EACH) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        firsts = [
            (await ask(client, model, shared + text, 4)).first_s
            for text in prompts(4, 24, seed, shared=" ")
        ]
    return {"cold_first_token_s": firsts[0], "warm_first_token_s": float(np.median(firsts[1:]))}


async def at_share(base: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Ask at a share of the server's capacity, in requests a second, at random times."""
    async with httpx.AsyncClient(base_url=base, timeout=600, limits=ONE_EACH) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        numbers = itertools.count(seed * 100_000)

        async def one() -> float:
            (text,) = prompts(1, options.prompt, next(numbers))
            return (await ask(client, model, text, options.tokens)).first_s

        most = await open_load.capacity(one, max(options.streams), max(options.requests // 4, 20))
        rate = most * options.load
        firsts = await open_load.arrivals(one, rate, options.requests, seed)
    told = {"streams": f"load {options.load:g}", "capacity_per_s": most, "rate_per_s": rate}
    return {**told, "requests": len(firsts), **open_load.quantiles(firsts)}


def measure_server(server: Server, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Start a server, load it, stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.split(server.command.format(port=port, python=sys.executable))
    base, rows = f"http://127.0.0.1:{port}", list[dict[str, Any]]()
    with options.log.open("a") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            ready(base, process)
            asyncio.run(load(base, 1, options, 1000))  # shapes seen once are not timed
            if options.load:
                rows.append(asyncio.run(at_share(base, options, seed)))
            else:
                rows += [asyncio.run(load(base, x, options, seed)) for x in options.streams]
                rows.append(asyncio.run(prefix(base, seed)))
            anonymous, resident = measure._memory(process.pid)
        finally:
            process.terminate()
            process.wait(60)
    memory = {"anonymous_mib": round(anonymous / MIB), "resident_mib": round(resident / MIB)}
    return [{"server": server.name, **row, **memory} for row in rows]


def ready(base: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{base}/v1/models").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise measure.BenchError(f"the server is not ready: exit status {process.poll()}")


def bare(bundle: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the same steps on a session without a server."""
    from edgekit.bundle.reader import open_bundle
    from edgekit.engine.candidates import best_of
    from edgekit.engine.load import load_bundle
    from edgekit.engine.session import decode_rows

    slots = max(options.streams)
    model = load_bundle(open_bundle(bundle), threads=options.threads, max_sequences=slots)
    rows = []
    for streams in options.streams:
        ids = [model.tokenizer.encode(text) for text in prompts(streams, options.prompt, 5)]
        begun = time.perf_counter()
        tokens = [int(model.session.prefill(slot, x).argmax()) for slot, x in enumerate(ids)]
        for step in range(options.tokens - 1):
            places = [len(x) + step for x in ids]
            found = decode_rows(
                model.session, list(range(streams)), tokens, places, [0.0] * streams
            )
            tokens = [best_of(row) for row in found]
        taken = time.perf_counter() - begun
        rows.append({"streams": streams, "tokens_per_s": streams * options.tokens / taken})
    model.session.close()
    return [{"server": "the session alone", **row} for row in rows]


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--server", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--bare", type=Path, metavar="BUNDLE")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompt", type=int, default=128, help="about as many tokens")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--each", type=int, default=1, help="requests of a stream")
    parser.add_argument("--threads", type=int, default=2, help="of --bare")
    parser.add_argument("--load", type=float, metavar="SHARE", help="of the capacity, instead")
    parser.add_argument("--requests", type=int, default=300, help="of --load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--log", type=Path, default=Path("bench_serve.log"))
    parser.add_argument("--json", type=Path)
    report.add_calm_arguments(parser)
    options = parser.parse_args()
    servers = [Server(*text.split("=", 1)) for text in options.server]
    rows: list[dict[str, Any]] = []
    for number in range(options.rounds):
        first = number % max(len(servers), 1)
        for server in servers[first:] + servers[:first]:
            if options.calm:
                measure.wait_until_calm(options.calm, options.calm_timeout_s)
            rows += measure_server(server, options, number)
        if options.bare:
            rows += bare(options.bare, options)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    print(summary(rows))
    if options.json:
        report.write_json(options.json, {"machine": report.machine(), "rows": rows})
    return 0


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table of medians, a line a server and number of streams."""
    keys = dict.fromkeys((row["server"], row.get("streams")) for row in rows)
    figures = (
        "tokens_per_s", "first_token_s", "cold_first_token_s", "warm_first_token_s",
        "capacity_per_s", "first_token_p90_s", "first_token_p99_s", "p99_to_p50", "anonymous_mib",
    )  # fmt: skip
    lines = []
    for name, streams in keys:
        own = [row for row in rows if (row["server"], row.get("streams")) == (name, streams)]
        cells = [name, "prefix" if streams is None else str(streams)]
        for figure in figures:
            values = [row[figure] for row in own if figure in row]
            cells.append(f"{report.median(values):.3g}" if values else "")
        lines.append(cells)
    return report.table(["server", "streams", *figures], lines)


if __name__ == "__main__":
    sys.exit(main())
