#!/usr/bin/env python3
"""Triage of telemetry on the device: lines in, alarms out, and nothing else over the air.

Each line goes to the device's own server, whose answer is bound to a JSON Schema. Alarms alone are
forwarded, some in one POST, or printed. At the end stand the bytes that this spared, as counted.

    triage.py telemetry.txt --model edgekit-r1-tiny --forward https://fleet.example.com/alarms
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

import httpx

SCHEMA = {
    "type": "object",
    "properties": {
        "metric": {"type": "string", "pattern": "^[a-z0-9_]{1,40}$"},
        "value": {"type": "number"},
        "alarm": {"type": "boolean"},
    },
    "required": ["metric", "value", "alarm"],
    "additionalProperties": False,
}
NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "triage", "strict": True, "schema": SCHEMA},
}


@dataclass
class Tally:
    """What came in and what went out.

    Attributes:
        lines: Lines read.
        raw_bytes: Their bytes, line ends included.
        alarms: Alarms among them.
        unclear: Lines of which no answer can be trusted; they are forwarded, as they are.
        posts: Requests that forwarded them.
        sent_bytes: Of those requests, heads included; of what was printed, without a URL.
        received_bytes: Of their answers, heads included.
    """

    lines: int = 0
    raw_bytes: int = 0
    alarms: int = 0
    unclear: int = 0
    posts: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    waiting: list[dict[str, Any]] = field(default_factory=list)

    def report(self) -> str:
        """Return the figures; a negative sparing is told as it is."""
        forwarded = self.sent_bytes + self.received_bytes
        spared = self.raw_bytes - forwarded
        share = 100 * spared / self.raw_bytes if self.raw_bytes else 0.0
        return (
            f"{self.lines} lines, {self.raw_bytes} bytes; {self.alarms} alarms, {self.unclear} "
            f"unclear; forwarded {forwarded} bytes in {self.posts} requests (HTTP included); "
            f"spared {spared} bytes ({share:.1f} %)"
        )


def ask(client: httpx.Client, url: str, model: str, line: str) -> dict[str, Any] | None:
    """Return what the device's model says of a line; None if that cannot be trusted.

    A schema bounds the form of an answer, not its truth: an answer that was cut is not trusted, nor
    one whose value does not stand in the line, as of a metric that the model was never taught.

    Raises:
        httpx.HTTPError: The server did not answer, or refused.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": line}],
        "response_format": RESPONSE_FORMAT,
        "temperature": 0,
        "max_tokens": 200,
    }
    # Telemetry stays on the device, whatever the server may route elsewhere.
    headers = {"x-edgekit-privacy": "local"}
    response = client.post(f"{url}/chat/completions", json=body, headers=headers)
    response.raise_for_status()
    choice = response.json()["choices"][0]
    if choice["finish_reason"] != "stop":
        return None
    found: dict[str, Any] = json.loads(choice["message"]["content"])
    return found if float(found["value"]) in map(float, NUMBER.findall(line)) else None


def triage(
    lines: Iterable[str],
    judge: Callable[[str], dict[str, Any] | None],
    forward: Callable[[list[dict[str, Any]], Tally], None],
    batch: int,
    hold_s: float = 60.0,
) -> Tally:
    """Judge every line and forward the alarms, so many at a time.

    Args:
        lines: Telemetry.
        judge: Tells metric, value and alarm of a line; None: it cannot.
        forward: Takes alarms out of the device.
        batch: Alarms in one request.
        hold_s: Seconds after which those that wait go without the rest, as lines come.
    """
    tally, due_s = Tally(), time.monotonic() + hold_s
    for line in lines:
        text = line.strip()
        tally.raw_bytes += len(line.encode())
        if not text:
            continue
        tally.lines += 1
        found = judge(text)
        if found is None:
            tally.unclear += 1
            tally.waiting.append({"line": text})
        elif found["alarm"]:
            tally.alarms += 1
            tally.waiting.append({"metric": found["metric"], "value": found["value"]})
        if len(tally.waiting) >= batch or (tally.waiting and time.monotonic() >= due_s):
            _flush(tally, forward)
        if not tally.waiting:
            due_s = time.monotonic() + hold_s
    _flush(tally, forward)
    return tally


def _flush(tally: Tally, forward: Callable[[list[dict[str, Any]], Tally], None]) -> None:
    if tally.waiting:
        forward(tally.waiting, tally)
        tally.waiting = []


def compact(alarms: list[dict[str, Any]]) -> bytes:
    """Return alarms as JSON lines."""
    return b"".join(
        json.dumps(alarm, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        for alarm in alarms
    )


def post(client: httpx.Client, url: str, alarms: list[dict[str, Any]], tally: Tally) -> None:
    """Forward alarms by one request, and count its bytes and its answer's.

    Raises:
        httpx.HTTPError: They were not taken.
    """
    head = {"content-type": "application/x-ndjson", "accept-encoding": "identity"}
    response = client.post(url, content=compact(alarms), headers=head)
    tally.posts += 1
    tally.sent_bytes += sum(map(len, _request_head(response.request))) + len(compact(alarms))
    tally.received_bytes += sum(map(len, _response_head(response)))
    tally.received_bytes += response.num_bytes_downloaded
    response.raise_for_status()


def show(alarms: list[dict[str, Any]], tally: Tally) -> None:
    """Print alarms."""
    data = compact(alarms)
    tally.sent_bytes += len(data)
    sys.stdout.write(data.decode())
    sys.stdout.flush()


def _request_head(request: httpx.Request) -> Iterator[bytes]:
    """Yield the bytes that stand before a request's body."""
    yield b"POST " + request.url.raw_path + b" HTTP/1.1\r\n"
    for name, value in request.headers.raw:
        yield name + b": " + value + b"\r\n"
    yield b"\r\n"


def _response_head(response: httpx.Response) -> Iterator[bytes]:
    """Yield the bytes that stand before an answer's body."""
    yield f"{response.http_version} {response.status_code} ".encode()
    yield response.extensions.get("reason_phrase", b"") + b"\r\n"
    for name, value in response.headers.raw:
        yield name + b": " + value + b"\r\n"
    yield b"\r\n"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=argparse.FileType(), default=sys.stdin)
    parser.add_argument("--server", default="http://127.0.0.1:8000/v1", help="the device's own")
    parser.add_argument("--model", required=True, help="its model's name")
    parser.add_argument("--forward", metavar="URL", help="POST alarms there [default: print them]")
    parser.add_argument("--batch", type=int, default=16, help="alarms in a request [default: 16]")
    parser.add_argument(
        "--hold-s", type=float, default=60.0, help="longest wait of an alarm [default: 60]"
    )
    options = parser.parse_args()
    source: TextIO = options.file
    with httpx.Client(timeout=60) as device, httpx.Client(timeout=30) as air:

        def forward(alarms: list[dict[str, Any]], tally: Tally) -> None:
            if options.forward is None:
                show(alarms, tally)
            else:
                post(air, options.forward, alarms, tally)

        def judge(line: str) -> dict[str, Any] | None:
            return ask(device, options.server, options.model, line)

        try:
            tally = triage(source, judge, forward, options.batch, options.hold_s)
        except httpx.HTTPError as error:
            sys.stderr.write(f"triage: {type(error).__name__}: {error}\n")
            return 1
    sys.stderr.write(tally.report() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
