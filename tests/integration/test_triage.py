"""The triage example against the server it is for: alarms leave, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from serve_cases import NAME, served

from device.api.service import Service

FOLDER = Path(__file__).parents[2] / "examples" / "triage"
THRESHOLDS = {
    "packet loss": ("packet_loss_percent", 0.1),
    "gpu memory": ("gpu_memory_percent", 90),
    "gpu temperature": ("gpu_temperature_celsius", 95),
    "power draw": ("power_watts", 60),
    "disk usage": ("disk_used_percent", 85),
}
"""What the example model was taught: above them is an alarm."""


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[tuple[str, Service]]:
    with served(bundle) as found:
        yield found


class Fleet(HTTPServer):
    """Takes alarms, and counts every byte of its sockets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taker)
        self.alarms: list[Any] = []
        self.bytes_in = self.bytes_out = 0


class Taker(BaseHTTPRequestHandler):
    """One connection to it."""

    protocol_version = "HTTP/1.1"
    server: Fleet
    raw_requestline: bytes

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.alarms += [json.loads(line) for line in body.splitlines()]
        head = [self.raw_requestline, *(f"{k}: {v}\r\n".encode() for k, v in self.headers.items())]
        self.server.bytes_in += sum(map(len, head)) + 2 + len(body)
        data = b'{"ok":true}'
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        self.server.bytes_out += len(answer)
        self.wfile.write(answer)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def truth(line: str) -> dict[str, Any] | None:
    """Return what is to be forwarded of a line; None: nothing."""
    known = [what for words, what in THRESHOLDS.items() if words in line]
    if not known:
        return {"line": line}
    (name, threshold), (found,) = known[0], re.findall(r"[0-9]+(?:\.[0-9]+)?", line)
    return {"metric": name, "value": float(found)} if float(found) > threshold else None


def run(server: tuple[str, Service], *arguments: str, text: str = "") -> Any:
    command = [sys.executable, str(FOLDER / "triage.py"), "--server", f"{server[0]}/v1"]
    return subprocess.run(
        [*command, "--model", NAME, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_alarms_alone_leave_the_device(server: tuple[str, Service], fleet: Fleet) -> None:
    """Those that the thresholds say, in one request; the bytes told are those of the sockets."""
    path = FOLDER / "telemetry.txt"
    lines = path.read_text().splitlines()
    wanted = [found for found in map(truth, lines) if found is not None]
    url = f"http://127.0.0.1:{fleet.server_port}/alarms"
    result = run(server, str(path), "--forward", url)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert fleet.alarms == wanted
    assert {"line": "telemetry: modem rsrp=-118dBm"} in wanted
    figures = [float(x) for x in re.findall(r"-?[0-9]+(?:\.[0-9]+)?", result.stderr)]
    count, raw, alarms, unclear, forwarded, posts, spared, share = figures
    assert (count, raw, posts) == (len(lines), path.stat().st_size, 1)
    assert (alarms, unclear) == (len(wanted) - 1, 1)
    assert forwarded == fleet.bytes_in + fleet.bytes_out
    assert spared == raw - forwarded
    assert share > 70


def test_alarms_are_printed_without_a_url(server: tuple[str, Service]) -> None:
    """From stdin, one by one; empty lines count as bytes and are not asked about."""
    text = "Triage: gpu memory is 92%\n\nTriage: gpu memory is 75%\n"
    result = run(server, "--batch", "1", text=text)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"metric": "gpu_memory_percent", "value": 92}
    ]
    assert result.stderr.startswith(f"2 lines, {len(text)} bytes; 1 alarms, 0 unclear;")


def test_alarms_that_nobody_takes_are_no_success(server: tuple[str, Service]) -> None:
    """The exit code says so."""
    text = "Triage: gpu memory is 92%\n"
    result = run(server, "--forward", "http://127.0.0.1:9/", text=text)
    assert result.returncode == 1
    assert result.stderr.startswith("triage: ConnectError")
