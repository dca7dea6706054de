"""The bound inputs and outputs of one step shape: allocated once, filled in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.half import to_float32
from edgekit.engine.ort_cache import KeyValueCache
from edgekit.engine.ort_run import annotation, run_bound, run_options
from edgekit.engine.ort_select import Selection, Selector
from edgekit.engine.step_inputs import step_inputs
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

    Attributes:
        batch: Rows of the step.
        inputs: What the next run reads; to be filled before it.
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
    ) -> None:
        import onnxruntime as ort  # noqa: PLC0415

        first, batch, tokens, wanted = key
        self.batch = batch
        self._device = device
        self._graph_id = annotation(graph_id)
        self._options = run_options(self._graph_id)
        names = {value.name for value in session.get_inputs()}
        self.inputs = step_inputs(names, (batch, tokens, wanted), cache.capacity, device)
        logits = np.zeros((batch, wanted, config.vocab_size), cache.dtype)
        host = self.inputs.on_host
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(array, "cpu" if name in host else device, 0)
            for name, array in self.inputs.arrays.items()
        }
        # Host inputs share the arrays' memory; which logits are wanted is the shape's own.
        fixed = {*host, engine_io.LOGITS_INDEX}
        self._uploaded = [name for name in self._values if name not in fixed]
        self._logits = ort.OrtValue.ortvalue_from_numpy(logits, device, 0)
        self._host_logits = logits
        self._selections: dict[bool, Selection] = {}
        self._view: Any = None
        self._binding = session.io_binding()
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(engine_io.LOGITS, self._logits)
        shape = cache.shape(batch)
        for layer in range(config.num_hidden_layers):
            for offset, past, present in (
                (0, engine_io.past_key(layer), engine_io.present_key(layer)),
                (1, engine_io.past_value(layer), engine_io.present_value(layer)),
            ):
                where = cache.pointer(2 * layer + offset, first)
                self._binding.bind_input(past, device, 0, cache.dtype.type, shape, where)
                self._binding.bind_output(present, device, 0, cache.dtype.type, shape, where)

    def run(self, session: Any) -> None:
        """Run the step; its logits stay on the device, until the next run.

        Raises:
            EngineError: ONNX Runtime fails (out of memory, a kernel that refuses a shape).
        """
        if self._device != "cpu":
            for name in self._uploaded:
                self._values[name].update_inplace(self.inputs.arrays[name])
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

    def selection(self, selector: Selector, *, sums: bool) -> Selection:
        """Return the selection that reads this step's logits; it is kept with the step.

        Raises:
            EngineError: ONNX Runtime refuses its graph.
        """
        found = self._selections.get(sums)
        if found is None:
            found = selector.attach(self._logits, self.batch, sums=sums)
            self._selections[sums] = found
        return found
