"""Asks the process that holds the builder (``trt.worker``), and explains how it ended.

Imports neither onnx nor a builder: a machine that only finds its engines needs none of both.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgekit import errors
from edgekit.errors import EdgekitError, EngineError
from edgekit.progress import SILENT, Progress
from edgekit.trt.module import BuilderInfo

WORKER = (sys.executable, "-c", "from edgekit.trt.worker import main; main()")


@dataclass(frozen=True, slots=True)
class Remedies:
    """What to do about a worker that was killed, and about one that failed otherwise."""

    killed: str
    failed: str


def ask(
    command: Sequence[str],
    request: dict[str, Any],
    builder: BuilderInfo,
    remedies: Remedies,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Run a worker and return its result.

    Args:
        command: The worker.
        request: What it serves.
        builder: Named where it fails.
        remedies: What to do then.
        progress: Told what the builder begins; the caller starts and finishes the stage.

    Raises:
        EdgekitError: What the worker says went wrong.
        EngineError: It ended without an answer.
    """
    with (
        tempfile.TemporaryFile() as noise,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True
        ) as worker,
    ):
        if worker.stdin is None or worker.stdout is None:
            raise AssertionError
        try:
            _send(worker.stdin, json.dumps(request))
            last = ""
            for text in worker.stdout:
                line = json.loads(text)
                if "result" in line:
                    result: dict[str, Any] = line["result"]
                    return result
                if "error" in line:
                    raise error_from(line["error"])
                last = line["phase"]
                progress.advance(0, last)
            status = worker.wait()
        finally:
            worker.kill()
        noise.seek(0)
        said = noise.read().decode("utf-8", "replace").strip().splitlines()
        raise _ended_early(status, builder, last, said[-1] if said else "", remedies)


def describe(builder: BuilderInfo) -> dict[str, str]:
    """Return a builder as a request carries it."""
    return asdict(builder)


def error_from(line: dict[str, str]) -> EdgekitError:
    """Return the exception that a worker's ``error`` line tells of."""
    kind = getattr(errors, line["kind"], errors.EngineError)
    error: EdgekitError = EdgekitError.__new__(kind)
    EdgekitError.__init__(error, line["message"], line["remedy"])
    return error


def _send(pipe: Any, text: str) -> None:
    """Give the worker its request; one that is gone already shows itself by its exit status."""
    try:
        pipe.write(text)
        pipe.close()
    except BrokenPipeError:
        pass


def _ended_early(
    status: int, builder: BuilderInfo, phase: str, said: str, remedies: Remedies
) -> EngineError:
    """Return the error of a worker that ended without an answer."""
    where = f" in {phase!r}" if phase else ""
    if status == -signal.SIGKILL:
        return EngineError(
            f"{builder.name} {builder.version} was killed{where}: most likely memory ran out",
            remedies.killed,
        )
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return EngineError(
        f"{builder.name} {builder.version} ended {how}{where}{': ' if said else ''}{said}",
        remedies.failed,
    )
