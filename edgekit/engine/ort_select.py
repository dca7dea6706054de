"""Selection behind an ONNX Runtime session: candidates are found where the logits are.

A second, tiny session reads the decode step's logits at their place on the device and hands back
one small tensor. It is of its own, not appended to the model, so that a step that wants whole rows
(or only the best token) pays for nothing else, and a bundle's files stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.engine.candidates import Candidates
from edgekit.engine.ort_run import annotation, run_bound, run_options
from edgekit.engine.select_graph import (
    LOGITS,
    SELECTED,
    TEMPERATURES,
    SelectLayout,
    select_graph,
)

SAMPLED_CANDIDATES: Final = 64
"""Enough for most steps at top-p 0.95; more make both ``TopK`` longer."""
GREEDY_CANDIDATES: Final = 4
"""The best token is known unless this many share the largest logit."""

Float32Array = npt.NDArray[np.float32]


class Selector:
    """Makes selections for one model.

    Args:
        vocab_size: V.
        dtype: Of the logits.
        device: ``cpu`` or ``cuda``.
        open_model: Makes an ONNX Runtime session of a serialized model.
        cuda_graph: Capture each selection.
    """

    def __init__(
        self,
        vocab_size: int,
        dtype: npt.DTypeLike,
        device: str,
        open_model: Callable[[bytes], Any],
        *,
        cuda_graph: bool,
    ) -> None:
        self._vocab_size = vocab_size
        self._dtype = np.dtype(dtype)
        self._device = device
        self._open = open_model
        self._cuda_graph = cuda_graph
        self._opened: dict[bool, tuple[SelectLayout, Any]] = {}
        self._graphs = 0

    def attach(self, logits: Any, batch: int, *, sums: bool) -> Selection:
        """Return a selection from a step's logits.

        Args:
            logits: OrtValue [batch, 1, V] on the device.
            batch: Its rows.
            sums: For sampling; else for the best token only.

        Raises:
            EngineError: ONNX Runtime refuses the graph.
        """
        if sums not in self._opened:
            count = SAMPLED_CANDIDATES if sums else GREEDY_CANDIDATES
            layout = SelectLayout.for_vocabulary(self._vocab_size, count, sums=sums)
            self._opened[sums] = layout, self._open(select_graph(layout, self._dtype))
        layout, session = self._opened[sums]
        self._graphs += 1
        graph_id = self._graphs if self._cuda_graph else None
        return Selection(session, layout, logits, batch, self._device, graph_id=graph_id)


class Selection:
    """Bound buffers of one selection; see :meth:`Selector.attach`."""

    def __init__(
        self,
        session: Any,
        layout: SelectLayout,
        logits: Any,
        batch: int,
        device: str,
        *,
        graph_id: int | None,
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        self._session, self._layout = session, layout
        self._options = run_options(annotation(graph_id))
        self._temperatures = np.ones((batch, 1), np.float32)
        # Of copies: on a CPU an OrtValue is its array's memory.
        self._bound = ort.OrtValue.ortvalue_from_numpy(self._temperatures.copy(), device, 0)
        selected = np.zeros((batch, layout.parts * layout.count), np.float32)
        self._selected = ort.OrtValue.ortvalue_from_numpy(selected, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(LOGITS, logits)
        if layout.sums:
            self._binding.bind_ortvalue_input(TEMPERATURES, self._bound)
        self._binding.bind_ortvalue_output(SELECTED, self._selected)

    def run(self, temperatures: npt.NDArray[np.float32]) -> Float32Array:
        """Select; returns [B, parts, k], overwritten by the next run.

        Args:
            temperatures: float32 [B], all above 0; of no effect without sums.

        Raises:
            EngineError: ONNX Runtime fails.
        """
        if self._layout.sums and not np.array_equal(self._temperatures[:, 0], temperatures):
            self._temperatures[:, 0] = temperatures
            self._bound.update_inplace(self._temperatures)
        run_bound(self._session, self._binding, self._options)
        result: Float32Array = self._selected.numpy()
        return result.reshape(len(result), self._layout.parts, self._layout.count)

    def candidates(
        self, selected: Float32Array, fetchers: Sequence[Callable[[], Float32Array]]
    ) -> list[Candidates]:
        """Return the candidates of rows.

        Args:
            selected: [N, parts, k], rows of :meth:`run` whose logits are all finite.
            fetchers: One a row, returns the whole row.
        """
        layout = self._layout
        tokens = layout.tokens(selected[:, 1].astype(np.int64), selected[:, 2].astype(np.int64))
        order = tokens.argsort(axis=1)
        tokens = np.take_along_axis(tokens, order, axis=1)
        logits = np.take_along_axis(selected[:, 0], order, axis=1)
        edges = [-np.inf] * len(tokens)
        if layout.count < layout.vocab_size:
            edges = logits.min(axis=1).tolist()
        totals = selected[:, 4, 0].tolist() if layout.sums else [None] * len(tokens)
        rows = zip(tokens, logits, edges, totals, fetchers, strict=True)
        return [Candidates(*row) for row in rows]


def all_finite(selected: Float32Array) -> npt.NDArray[np.bool_]:
    """Return of each row [B] whether all its logits are finite: their sum is."""
    return np.isfinite(selected[:, 3, 0])
