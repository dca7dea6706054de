"""Opens an edgekit bundle for a benchmark: the one place that knows edgekit's engine API."""

from __future__ import annotations

from pathlib import Path

from edgekit.engine.session import InferenceSession


def open_session(folder: Path, *, threads: int, max_context: int) -> InferenceSession:
    """Open a bundle's host graph in ONNX Runtime on the CPU, one slot of ``max_context``."""
    from edgekit.bundle.reader import open_bundle
    from edgekit.engine.ort import OrtSession

    return OrtSession.open(open_bundle(folder), threads=threads, max_context=max_context)
