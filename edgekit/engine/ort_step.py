"""The bound inputs and outputs of one step shape: allocated once, filled in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.ort_cache import KeyValueCache
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
        self.arrays: dict[str, npt.NDArray[Any]] = {
            engine_io.INPUT_IDS: np.zeros((batch, tokens), np.int64),
            engine_io.POSITION_IDS: np.zeros((batch, tokens), np.int64),
            engine_io.ATTENTION_MASK: np.zeros((batch, 1, tokens, cache.capacity), np.bool_),
            engine_io.WRITE_INDEX: np.zeros(batch, np.int64),
            engine_io.LOGITS_INDEX: np.zeros((batch, wanted, 1), np.int64),
        }
        self.arrays[engine_io.LOGITS_INDEX][:] = np.arange(tokens - wanted, tokens)[:, None]
        logits = np.zeros((batch, wanted, config.vocab_size), cache.dtype)
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in self.arrays.items()
        }
        self._logits = ort.OrtValue.ortvalue_from_numpy(logits, device, 0)
        self._host_logits = logits
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
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

    def set_tokens(self, tokens: Sequence[int], start: int) -> None:
        """Fill the one row of a prefill step."""
        count = len(tokens)
        positions = np.arange(start, start + count)
        self.arrays[engine_io.INPUT_IDS][0] = tokens
        self.arrays[engine_io.POSITION_IDS][0] = positions
        mask = self.arrays[engine_io.ATTENTION_MASK]
        mask[0, 0] = np.arange(mask.shape[-1]) <= positions[:, None]
        self.arrays[engine_io.WRITE_INDEX][0] = start

    def set_idle(self, lengths: npt.NDArray[np.int64]) -> None:
        """Make every row harmless: it writes where its slot has no token yet, and sees row 0."""
        self.arrays[engine_io.WRITE_INDEX][:] = lengths
        self.arrays[engine_io.POSITION_IDS][:] = 0
        mask = self.arrays[engine_io.ATTENTION_MASK]
        mask[:] = False
        mask[:, :, :, 0] = True

    def set_row(self, row: int, token: int, position: int) -> None:
        """Fill one row of a decode step."""
        self.arrays[engine_io.INPUT_IDS][row, 0] = token
        self.arrays[engine_io.POSITION_IDS][row, 0] = position
        self.arrays[engine_io.ATTENTION_MASK][row, 0, 0, : position + 1] = True
        self.arrays[engine_io.WRITE_INDEX][row] = position

    def run(self, session: Any) -> npt.NDArray[Any]:
        """Run the step; returns logits [batch, wanted, V], overwritten by the next run.

        Raises:
            EngineError: ONNX Runtime fails (out of memory, a kernel that refuses a shape).
        """
        if self._device != "cpu":
            for name, value in self._inputs.items():
                value.update_inplace(self.arrays[name])
        try:
            session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            first = str(error).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime failed in a step: {first}") from error
        if self._device == "cpu":
            return self._host_logits
        result: npt.NDArray[Any] = self._logits.numpy()
        return result
