"""The process that holds the builder: its memory and its crashes end with it.

See :mod:`edgekit.worker_process` for what it reads and writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from edgekit import worker_process
from edgekit.bundle.storage import storage_errors
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.errors import GraphError
from edgekit.trt.engine import EngineFacts, build_engine
from edgekit.trt.holding import Holding, lower_priority
from edgekit.trt.module import BuilderInfo
from edgekit.trt.shrink import Shrunk, dense_bytes, shrink, stored_bytes, whole


def main() -> None:
    """Serve one request and end."""
    worker_process.serve(serve)


def serve(request: dict[str, Any], phase: Any) -> dict[str, Any]:
    """Shrink, parse and build one graph.

    Args:
        request: ``graph`` (a path), ``plan``, ``builder``, ``full`` (keep every layer) and
            ``profiles`` (names, or null for all). For an engine to keep also ``engine`` (where
            to write it) and ``timings`` (the builder's, read and written), and for one built
            beside a server ``beside`` (the rules of ``trt.holding``).
        phase: Called with what the builder begins.

    Raises:
        GraphError: The file is no graph, or the builder refuses it.
        EngineError: The builder fails.
        StorageError: The engine or the timings cannot be written.
    """
    path, rules = Path(request["graph"]), request.get("beside")
    if rules is not None:
        lower_priority()
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        # protobuf's errors share no base with others; whatever it is, the file is no graph.
        raise GraphError(f"{path.name} cannot be read: {error}") from error
    shrunk: Shrunk = (whole if request["full"] else shrink)(model)
    sizes = {"stored_bytes": stored_bytes(model), "dense_bytes": dense_bytes(model)}
    census = Counter(node.op_type for node in model.graph.node)
    build = partial(
        build_engine,
        shrunk.model,
        path,
        EnginePlan.from_dict(request["plan"]),
        BuilderInfo(**request["builder"]),
        profiles=request["profiles"],
        phase=phase,
        holding=None if rules is None else Holding(rules, phase),
    )
    facts = _keep(request, build) if request.get("engine") else build()
    kept = {key: value for key, value in _fields(shrunk).items() if key != "model"}
    return {**facts.to_dict(), **kept, **sizes, "census": census}


def _keep(request: dict[str, Any], build: Callable[..., EngineFacts]) -> EngineFacts:
    """Build an engine into its file; the caller sees to what is left of one that fails."""
    path, timings = Path(request["engine"]), Path(request["timings"])
    with storage_errors(path, option="--cache"), path.open("wb") as file:
        return build(sink=file.write, timings=timings)


def _fields(shrunk: Shrunk) -> dict[str, Any]:
    return {name: getattr(shrunk, name) for name in Shrunk.__slots__}
