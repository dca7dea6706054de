"""Agents as processes of their own, with a folder each; and certificates for them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from serve_cases import NAME, SUM

HANGING = """
import pathlib, sys, time
from device.runtime.scheduler import Scheduler
own = Scheduler.step
def step(self):
    while pathlib.Path(sys.argv[1], "hang").exists():
        time.sleep(0.02)
    if pathlib.Path(sys.argv[1], "die").exists():
        raise ZeroDivisionError("a bug")
    return own(self)
Scheduler.step = step
from device.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
"""An agent whose engine's steps hang while there is a file."""


@dataclass
class Agent:
    """An agent that runs.

    Attributes:
        folder: Has its configuration, its log, and the link to its bundle.
        port: Where it listens.
        process: It.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)

    def wait(self, path: str, status: int = 200, within_s: float = 20) -> float:
        """Wait for a status; returns how long that took."""
        began = time.monotonic()
        while time.monotonic() < began + within_s:
            assert self.process.poll() is None, "the agent has ended"
            with contextlib.suppress(httpx.TransportError):
                if self.get(path).status_code == status:
                    return time.monotonic() - began
            time.sleep(0.01)
        raise AssertionError(f"{path} is not {status} after {within_s} s")

    def ask(self) -> httpx.Response:
        body = {"model": NAME, "messages": SUM, "temperature": 0}
        address = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx.post(address, json=body, timeout=30)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]


def start(
    folder: Path, *, script: str = "", port: int = 0, told: dict[str, str] | None = None
) -> Agent:
    """Start an agent with the configuration of a folder."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    head = (
        [sys.executable, "-c", script, str(folder)] if script else [sys.executable, "-m", "device"]
    )
    command = [*head, "--config", str(folder / "agent.toml"), "--port", str(port)]
    return Agent(folder, port, subprocess.Popen(command, env={**os.environ, **(told or {})}))


@contextlib.contextmanager
def agent(
    folder: Path,
    more: str = "",
    *,
    poll_s: float = 0.1,
    script: str = "",
    told: dict[str, str] | None = None,
) -> Iterator[Agent]:
    """Run an agent; its bundle is the link `current` of the folder."""
    (folder / "agent.toml").write_text(
        f'[serve]\nbundle = "{folder}/current"\nlog = "{folder}/log"\npoll_s = {poll_s}\n{more}\n'
    )
    found = start(folder, script=script, told=told)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


def wait_for_event(found: Agent, name: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if any(event["event"] == name for event in found.events()):
                return
        time.sleep(0.02)
    raise AssertionError(f"no {name} in the log")


def make_certificates(folder: Path) -> None:
    """Make an authority, and certificates of a server and a client by it."""

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=edgekit test",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip


def tls_of(folder: Path) -> str:
    """Return the configuration's lines that serve with the server's certificate."""
    return f'tls_certificate = "{folder}/server.pem"\ntls_key = "{folder}/server.key"'
