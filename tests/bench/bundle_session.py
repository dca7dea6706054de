"""Opens an edgekit bundle for a benchmark: the one place that knows edgekit's engine API."""

from __future__ import annotations

from pathlib import Path

from edgekit.bundle.reader import open_bundle
from edgekit.engine.load import load_bundle
from edgekit.engine.session import InferenceSession


def open_session(
    folder: Path, *, threads: int, max_context: int, dialect: str | None = None
) -> InferenceSession:
    """Open a bundle's host graph in ONNX Runtime on the CPU, with one slot.

    ``dialect`` names one of its graphs; None is the one that edgekit takes.

    Raises:
        ValueError: The bundle was built for a shorter context than ``max_context``.
    """
    session = load_bundle(open_bundle(folder), threads=threads, dialect=dialect).session
    if session.max_context < max_context:
        msg = f"{folder} holds {session.max_context} tokens, {max_context} are needed"
        raise ValueError(msg)
    return session
