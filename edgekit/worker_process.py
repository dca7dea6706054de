"""Asks a process of its own for something, and explains how it ended.

What takes a machine's memory, or may crash, does so there: a builder (``trt.worker``), an engine on
trial (``choice.worker``). A worker reads one request (JSON) from stdin and writes lines of JSON to
stdout: ``phase`` as it goes on, then ``result`` or ``error``. What libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import errors
from edgekit.errors import EdgekitError, EngineError
from edgekit.progress import SILENT, Progress

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_PDEATHSIG = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True, slots=True)
class Remedies:
    """What to do about a worker that was killed, and about one that failed otherwise."""

    killed: str
    failed: str


def ask(
    command: Sequence[str],
    request: dict[str, Any],
    who: str,
    remedies: Remedies,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Run a worker and return its result.

    Args:
        command: The worker.
        request: What it serves.
        who: What to call it where it fails.
        remedies: What to do then.
        progress: Told what it begins; the caller starts and finishes the stage.

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
        raise _ended_early(status, who, last, said[-1] if said else "", remedies)


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


def _ended_early(status: int, who: str, phase: str, said: str, remedies: Remedies) -> EngineError:
    """Return the error of a worker that ended without an answer."""
    where = f" in {phase!r}" if phase else ""
    if status == -signal.SIGKILL:
        return EngineError(
            f"{who} was killed{where}: most likely memory ran out",
            remedies.killed,
        )
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return EngineError(
        f"{who} ended {how}{where}{': ' if said else ''}{said}",
        remedies.failed,
    )


def serve(answer: Callable[[dict[str, Any], Callable[[str], None]], dict[str, Any]]) -> None:
    """Be a worker: serve the request on stdin and end; end, too, when who asked is gone.

    Args:
        answer: Gets the request and what to call with each phase; returns the result. An
            ``EdgekitError`` that it raises is raised where the worker was asked.
    """
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    # If memory runs out the system is to end this process, not an engine that answers.
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text("1000")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    told = ""

    def phase(name: str) -> None:
        nonlocal told
        if name != told:  # some phases run once a tensor
            told = name
            say({"phase": name})

    request = json.load(sys.stdin)
    try:
        say({"result": answer(request, phase)})
    except EdgekitError as error:
        kind = type(error).__name__
        say({"error": {"kind": kind, "message": error.message, "remedy": error.remedy}})
