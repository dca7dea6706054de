"""The process that holds the builder: its memory and its crashes end with it.

Reads one request (JSON) from stdin, writes lines of JSON to stdout: ``phase`` as the builder goes
on, then ``result`` or ``error``. What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from edgekit import errors
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.errors import EdgekitError, GraphError
from edgekit.trt.engine import build_engine
from edgekit.trt.module import BuilderInfo
from edgekit.trt.shrink import Shrunk, dense_bytes, shrink, stored_bytes, whole

_PDEATHSIG = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def main() -> None:
    """Serve one request and end; end, too, when the process that asked is gone."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
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
        say({"result": serve(request, phase)})
    except EdgekitError as error:
        kind = type(error).__name__
        say({"error": {"kind": kind, "message": error.message, "remedy": error.remedy}})


def serve(request: dict[str, Any], phase: Any) -> dict[str, Any]:
    """Shrink, parse and build one graph.

    Args:
        request: ``graph`` (a path), ``plan``, ``builder``, ``full`` (keep every layer) and
            ``profiles`` (names, or null for all).
        phase: Called with what the builder begins.
    """
    path = Path(request["graph"])
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        # protobuf's errors share no base with others; whatever it is, the file is no graph.
        raise GraphError(f"{path.name} cannot be read: {error}") from error
    shrunk: Shrunk = (whole if request["full"] else shrink)(model)
    sizes = {"stored_bytes": stored_bytes(model), "dense_bytes": dense_bytes(model)}
    census = Counter(node.op_type for node in model.graph.node)
    facts = build_engine(
        shrunk.model,
        path,
        EnginePlan.from_dict(request["plan"]),
        BuilderInfo(**request["builder"]),
        profiles=request["profiles"],
        phase=phase,
    )
    kept = {key: value for key, value in _fields(shrunk).items() if key != "model"}
    return {**facts.to_dict(), **kept, **sizes, "census": census}


def error_from(line: dict[str, str]) -> EdgekitError:
    """Return the exception that a worker's ``error`` line tells of."""
    kind = getattr(errors, line["kind"], errors.EngineError)
    error: EdgekitError = EdgekitError.__new__(kind)
    EdgekitError.__init__(error, line["message"], line["remedy"])
    return error


def describe(builder: BuilderInfo) -> dict[str, str]:
    """Return a builder as a request carries it."""
    return asdict(builder)


def _fields(shrunk: Shrunk) -> dict[str, Any]:
    return {name: getattr(shrunk, name) for name in Shrunk.__slots__}
