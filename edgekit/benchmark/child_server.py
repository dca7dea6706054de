"""``edgekit serve`` of a bundle in a process of its own, for as long as it is benched."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import httpx

from edgekit.errors import EngineError
from edgekit.progress import SILENT, Progress

HOST = "127.0.0.1"
DRAIN_S = 5
STOP_S = 30.0
_POLL_S = 0.05


@contextlib.contextmanager
def serve_bundle(
    bundle: Path, options: Sequence[str], progress: Progress = SILENT
) -> Iterator[str]:
    """Serve a bundle on a free port of this machine alone; yields the base URL.

    It is told to end by SIGTERM.

    Args:
        bundle: A bundle's folder.
        options: Further ones of ``edgekit serve``.
        progress: Told about the stage ``start``, which ends when the server is ready.

    Raises:
        EngineError: The server ended before it was ready.
    """
    port = str(_free_port())
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--host", HOST]
    command += ["--port", port, "--drain-s", str(DRAIN_S), *options]
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stderr=said) as server:
        try:
            progress.start("start", 0)
            _wait_until_ready(f"http://{HOST}:{port}/readyz", server, said)
            progress.finish(f"edgekit serve {bundle.name} on port {port}")
            yield f"http://{HOST}:{port}/v1"
        finally:
            _stop(server)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """Wait until it would answer; loading, or building an engine, takes what it takes."""
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while server.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get(url).status_code == 200:
                    return
            time.sleep(_POLL_S)
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    why = lines[-1].removeprefix("error: ").rstrip(".") if lines else "it says nothing"
    raise EngineError(
        f"edgekit serve ended with exit status {server.returncode}: {why}",
        "Serve the bundle by hand, and bench its URL",
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Let the server end by itself; one that does not is killed."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as free:
        return int(free.getsockname()[1])
