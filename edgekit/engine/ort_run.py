"""Running bound inputs and outputs in ONNX Runtime."""

from __future__ import annotations

from typing import Any

from edgekit.errors import EngineError, first_line

NO_GRAPH = -1
"""ONNX Runtime's ``kGraphAnnotationSkip`` (inference_session.h)."""


def annotation(graph_id: int | None) -> str:
    """Return a CUDA graph's annotation; None is a run without a graph."""
    # Unset, the annotation is 0, which captures too: -1 is what runs without a graph.
    return str(NO_GRAPH if graph_id is None else graph_id)


def run_options(graph: str) -> Any:
    """Return the options of runs with an annotation."""
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options


def run_bound(session: Any, binding: Any, options: Any) -> None:
    """Run what is bound.

    Raises:
        EngineError: ONNX Runtime fails (out of memory, a kernel that refuses a shape).
    """
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise EngineError(
            f"ONNX Runtime failed in a step: {first_line(error)}",
            "Free memory, or ask for less context; `edgekit verify` runs every graph",
        ) from error
