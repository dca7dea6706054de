"""The bound inputs and outputs of one step shape: allocated once, filled in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.half import to_float32
from edgekit.engine.ort_cache import KeyValueCache
from edgekit.engine.ort_run import annotation, run_bound, run_options
from edgekit.engine.ort_select import Selected, Selection, Selector
from edgekit.engine.select_graph import SELECTED, TEMPERATURES, SelectLayout
from edgekit.engine.step_inputs import pack, step_inputs
from edgekit.models.config import ModelConfig


class Step:
    """Buffers for ``batch`` slots from ``first``, ``tokens`` new tokens, ``wanted`` logits.

    Args:
        session: The ONNX Runtime session.
        cache: Caches to bind in place, at their present tier.
        config: Architecture.
        key: ``(first, batch, tokens, wanted)``.
        device: ``cpu`` or ``cuda``.
        graph_id: CUDA graph annotation of this shape, never used for another; None runs
            without a graph.
        joined: Layout of the graph's joined selection, to be read after a run.

    Attributes:
        batch: Rows of the step.
        inputs: What the next run reads; to be filled before it.
        temperatures: float32 [batch, 1], all above 0: what a selection divides the logits by.
    """

    def __init__(
        self,
        session: Any,
        cache: KeyValueCache,
        config: ModelConfig,
        key: tuple[int, int, int, int],
        device: str,
        *,
        graph_id: int | None,
        joined: SelectLayout | None = None,
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        first, batch, tokens, wanted = key
        self.batch = batch
        self._device = device
        self._graph_id = annotation(graph_id)
        self._options = run_options(self._graph_id)
        names = {value.name for value in session.get_inputs()}
        self.inputs = step_inputs(names, (batch, tokens, wanted), cache.capacity, device)
        self._binding = session.io_binding()
        self._bind_inputs()
        ones = np.ones((batch, 1), np.float32)
        self.temperatures = self.inputs.arrays.get(TEMPERATURES, ones)
        logits = np.zeros((batch, wanted, config.vocab_size), cache.dtype)
        self._logits = ort.OrtValue.ortvalue_from_numpy(logits, device, 0)
        self._host_logits = logits
        self._binding.bind_ortvalue_output(engine_io.LOGITS, self._logits)
        self._bind_caches(cache, config.num_hidden_layers, first)
        self._joined = joined
        if joined:
            self._selected = Selected(joined, batch, device)
            self._binding.bind_ortvalue_output(SELECTED, self._selected.value)
        self._selections: dict[bool, Selection] = {}
        self._view: Any = None

    def run(self, session: Any) -> None:
        """Run the step; its logits stay on the device, until the next run.

        Raises:
            EngineError: ONNX Runtime fails (out of memory, a kernel that refuses a shape).
        """
        if self._device != "cpu":
            self._packed.update_inplace(self._host_packed)
        run_bound(session, self._binding, self._options)

    def logits(self) -> npt.NDArray[Any]:
        """Return all logits of the last run, [batch, wanted, V], overwritten by the next."""
        if self._device == "cpu":
            return self._host_logits
        result: npt.NDArray[Any] = self._logits.numpy()
        return result

    def row(self, session: Any, index: int) -> npt.NDArray[np.float32]:
        """Return one sequence's logits [V] of the last run; a copy, of that row only."""
        _, _, width = self._host_logits.shape
        dtype = self._host_logits.dtype
        where = self._logits.data_ptr() + index * width * dtype.itemsize
        if self._view is None:
            self._view = session.io_binding()
        # An output bound to an address is an OrtValue of what lies there.
        self._view.bind_output(engine_io.LOGITS, self._device, 0, dtype.type, (width,), where)
        return to_float32(self._view.get_outputs()[0].numpy())

    def select(
        self, selector: Selector, *, sums: bool
    ) -> tuple[npt.NDArray[np.float32], SelectLayout]:
        """Return what is selected of the last run's logits, at ``temperatures``, and its layout.

        Raises:
            EngineError: ONNX Runtime refuses the graph of a selection apart, or fails in it.
        """
        if self._joined and (self._joined.sums or not sums):
            return self._selected.read(), self._joined
        selection = self.selection(selector, sums=sums)
        return selection.run(self.temperatures), selection.layout

    def selection(self, selector: Selector, *, sums: bool) -> Selection:
        """Return the selection apart that reads this step's logits; it is kept with the step.

        Raises:
            EngineError: ONNX Runtime refuses its graph.
        """
        found = self._selections.get(sums)
        if found is None:
            found = selector.attach(self._logits, self.batch, sums=sums)
            self._selections[sums] = found
        return found

    def _bind_inputs(self) -> None:
        """Bind the inputs: those for the device as parts of one buffer, which one copy fills."""
        import onnxruntime as ort  # noqa: PLC0415

        arrays, host = self.inputs.arrays, self.inputs.on_host
        self._host_packed, views = pack({n: a for n, a in arrays.items() if n not in host})
        arrays.update(views)
        self._packed = ort.OrtValue.ortvalue_from_numpy(self._host_packed, self._device, 0)
        start, base = self._host_packed.ctypes.data, self._packed.data_ptr()
        for name, view in views.items():
            where = base + view.ctypes.data - start
            kind = view.dtype.type
            self._binding.bind_input(name, self._device, 0, kind, view.shape, where)
        for name in host:  # shares the array's memory
            value = ort.OrtValue.ortvalue_from_numpy(arrays[name], "cpu", 0)
            self._binding.bind_ortvalue_input(name, value)

    def _bind_caches(self, cache: KeyValueCache, layers: int, first: int) -> None:
        """Bind each layer's cache as input and output: it is updated in place."""
        shape, kind = cache.shape(self.batch), cache.dtype.type
        for layer in range(layers):
            for offset, past, present in (
                (0, engine_io.past_key(layer), engine_io.present_key(layer)),
                (1, engine_io.past_value(layer), engine_io.present_value(layer)),
            ):
                where = cache.pointer(2 * layer + offset, first)
                self._binding.bind_input(past, self._device, 0, kind, shape, where)
                self._binding.bind_output(present, self._device, 0, kind, shape, where)
