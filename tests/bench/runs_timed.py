"""How much of a step is spent in ONNX Runtime, and how much around it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def runs_timed() -> Iterator[list[float]]:
    """Collect the seconds of each of ONNX Runtime's bound runs."""
    import onnxruntime as ort

    real, spent = ort.InferenceSession.run_with_iobinding, list[float]()

    def timed(*arguments: Any) -> None:
        begin = time.perf_counter()
        real(*arguments)
        spent.append(time.perf_counter() - begin)

    ort.InferenceSession.run_with_iobinding = timed
    try:
        yield spent
    finally:
        ort.InferenceSession.run_with_iobinding = real
