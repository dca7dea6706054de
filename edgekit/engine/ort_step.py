"""The bound inputs and outputs of one step shape: allocated once, filled in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.ort_cache import KeyValueCache
from edgekit.engine.step_inputs import step_inputs
from edgekit.errors import EngineError
from edgekit.models.config import ModelConfig

NO_GRAPH = -1
"""ONNX Runtime's ``kGraphAnnotationSkip`` (inference_session.h)."""


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
        self._device = device
        self._options = ort.RunOptions()
        # Unset, the annotation is 0, which captures too: -1 is what runs without a graph.
        self._graph_id = str(NO_GRAPH if graph_id is None else graph_id)
        self._options.add_run_config_entry("gpu_graph_id", self._graph_id)
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

    def run(self, session: Any) -> npt.NDArray[Any]:
        """Run the step; returns logits [batch, wanted, V], overwritten by the next run.

        Raises:
            EngineError: ONNX Runtime fails (out of memory, a kernel that refuses a shape).
        """
        if self._device != "cpu":
            for name in self._uploaded:
                self._values[name].update_inplace(self.inputs.arrays[name])
        try:
            session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            first = str(error).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime failed in a step: {first}") from error
        if self._device == "cpu":
            return self._host_logits
        result: npt.NDArray[Any] = self._logits.numpy()
        return result
