"""Opening graphs in ONNX Runtime, with the options that edgekit relies on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from edgekit.engine.ort_options import cuda_options, session_options
from edgekit.errors import EngineError, MissingExtraError, first_line

Provider = Literal["cpu", "cuda"]
_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_ort(
    graph: Path | bytes,
    provider: Provider,
    threads: int | None,
    *,
    cuda_graph: bool,
    title: str | None = None,
    exact: bool = False,
    derived: Mapping[str, npt.NDArray[Any]] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Any:
    """Load a graph, from its file or serialized, with the options edgekit relies on.

    ``exact`` leaves the graph as it is written: weights are dequantized and multiplied in float32,
    where fused kernels would round the activations to int8. ``title`` is what errors call the
    graph; a file goes by its name.

    Raises:
        EngineError: The provider is missing, or the graph is refused.
        MissingExtraError: ONNX Runtime is not installed.
    """
    ort = _onnxruntime(provider)
    name = _NAMES[provider]
    _require(ort, name)
    if provider == "cuda":
        # Finds CUDA and cuDNN in their wheels. What it prints about missing ones would spoil a
        # command's JSON; the check below is what reports them.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    options = session_options(threads, exact=exact, derived=derived, settings=settings)
    chosen = cuda_options(ort.__version__, cuda_graph=cuda_graph) if provider == "cuda" else {}
    providers = [(name, chosen)]
    source = graph if isinstance(graph, bytes) else str(graph)
    title = title or (graph.name if isinstance(graph, Path) else "a selection")
    try:
        session = ort.InferenceSession(source, options, providers=providers)
        for value in (*session.get_inputs(), *session.get_outputs()):
            value.name  # noqa: B018 - decodes it, which fails where it is no UTF-8
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise EngineError(
            f"ONNX Runtime {ort.__version__} refuses {title}: {first_line(error).rstrip('.')}",
            "`edgekit verify` says whether the graph is whole; if it is, install ONNX Runtime 1.24 "
            "or newer",
        ) from error
    if name not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime did not take {title} to {provider}",
            "Check that the driver, CUDA and cuDNN are those onnxruntime-gpu was built for",
        )
    return session


def newest_opset() -> int:
    """Return the newest ONNX opset that the installed ONNX Runtime takes.

    Source: 1.23.2 refuses opset 24 ("official support for domain ai.onnx is till opset 23"); from
    1.24 on it is taken.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    return 24 if installed_version("cpu") >= (1, 24) else 23


def installed_version(provider: Provider) -> tuple[int, int]:
    """Return the installed ONNX Runtime's major and minor version.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    major, minor = _onnxruntime(provider).__version__.split(".")[:2]
    return int(major), int(minor)


def _require(ort: Any, name: str) -> None:
    if name not in ort.get_available_providers():
        raise EngineError(
            f"this ONNX Runtime has no {name}",
            "In an environment of its own: pip install 'edgekit[cuda]'",
        )


def _onnxruntime(provider: Provider) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise MissingExtraError("Running a model", "cuda" if provider == "cuda" else "host") from (
            error
        )
    return onnxruntime
