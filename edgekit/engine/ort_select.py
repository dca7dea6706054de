"""Selection behind an ONNX Runtime session: candidates are found where the logits are.

*Joined*, the selection's nodes follow the model's own, so that a decode step is one run and one
captured CUDA graph. *Apart*, a second, tiny session reads the step's logits at their place on the
device: for graphs that nothing can join, and for sums that a joined selection does not make.
Either hands back one small tensor, and a bundle's files stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

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

Select = Literal["whole", "apart", "joined", "joined-greedy"]
"""Where candidates are found: nowhere, since rows are wanted whole; in a session apart; in the
model's own; in the model's own where only the best token is wanted, else apart."""
SAMPLED_CANDIDATES: Final = 64
"""Enough for most steps at top-p 0.95; more make both ``TopK`` longer."""
GREEDY_CANDIDATES: Final = 4
"""The best token is known unless this many share the largest logit."""
JOINS_FROM: Final = (1, 31)
"""Before this ONNX Runtime, ``TopK`` of a whole vocabulary is one thread block's work on CUDA."""

Float32Array = npt.NDArray[np.float32]


def choose_select(device: str, version: tuple[int, int], *, joinable: bool) -> Select:
    """Return where candidates are found unless a caller says it.

    Args:
        device: ``cpu`` or ``cuda``. On a CPU the rows are in main memory already.
        version: ONNX Runtime's.
        joinable: The graph is one that :func:`select_graph.join_selection` takes.
    """
    if device == "cpu":
        return "whole"
    return "joined" if joinable and version >= JOINS_FROM else "apart"


def joined_layout(select: Select, vocab_size: int) -> SelectLayout | None:
    """Return the layout of the selection that joins the model; None where none does."""
    if select not in ("joined", "joined-greedy"):
        return None
    sums = select == "joined"
    count = SAMPLED_CANDIDATES if sums else GREEDY_CANDIDATES
    return SelectLayout.ungrouped(vocab_size, count, sums=sums)


class Selector:
    """Makes selections apart for one model.

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
    """Bound buffers of one selection apart; see :meth:`Selector.attach`.

    Attributes:
        layout: Of what :meth:`run` returns.
    """

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

        self.layout = layout
        self._session = session
        self._options = run_options(annotation(graph_id))
        self._temperatures = np.ones((batch, 1), np.float32)
        # Of copies: on a CPU an OrtValue is its array's memory.
        self._bound = ort.OrtValue.ortvalue_from_numpy(self._temperatures.copy(), device, 0)
        self._selected = Selected(layout, batch, device)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(LOGITS, logits)
        if layout.sums:
            self._binding.bind_ortvalue_input(TEMPERATURES, self._bound)
        self._binding.bind_ortvalue_output(SELECTED, self._selected.value)

    def run(self, temperatures: npt.NDArray[np.float32]) -> Float32Array:
        """Select; returns [B, parts, k].

        Args:
            temperatures: float32 [B, 1], all above 0; of no effect without sums.

        Raises:
            EngineError: ONNX Runtime fails.
        """
        if self.layout.sums and not np.array_equal(self._temperatures, temperatures):
            self._temperatures[:] = temperatures
            self._bound.update_inplace(self._temperatures)
        run_bound(self._session, self._binding, self._options)
        return self._selected.read()


class Selected:
    """Where a selection leaves what it found.

    Attributes:
        value: The OrtValue to bind as the output.
    """

    def __init__(self, layout: SelectLayout, batch: int, device: str) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        self._shape = (batch, layout.parts, layout.count)
        zeros = np.zeros((batch, layout.parts * layout.count), np.float32)
        self.value = ort.OrtValue.ortvalue_from_numpy(zeros, device, 0)
        self._shared = device == "cpu"

    def read(self) -> Float32Array:
        """Return a copy [B, parts, k]."""
        result: Float32Array = self.value.numpy()
        return (result.copy() if self._shared else result).reshape(self._shape)


def candidates_of(
    selected: Float32Array, layout: SelectLayout, fetchers: Sequence[Callable[[], Float32Array]]
) -> list[Candidates]:
    """Return the candidates of rows.

    Args:
        selected: [N, parts, k], rows of a selection whose logits are all finite.
        layout: Its layout.
        fetchers: One a row, returns the whole row.
    """
    tokens = layout.tokens(selected[:, 1].astype(np.int64), selected[:, 2].astype(np.int64))
    complete = layout.count == layout.vocab_size
    found = []
    for row, parts, fetch in zip(tokens, selected, fetchers, strict=True):
        logits = parts[0]
        edge = -math.inf if complete else float(logits[-1])
        total = float(parts[4, 0]) if layout.sums else None
        found.append(Candidates(row, logits, edge, total, fetch))
    return found


def broken(selected: Float32Array) -> list[int]:
    """Return which rows [N, parts, k] have a logit that is not finite: their sum is not."""
    sums = selected[:, 3, 0].tolist()
    return [row for row, total in enumerate(sums) if not math.isfinite(total)]
