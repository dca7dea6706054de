"""Graphs of the ``trt103`` dialect behind the session protocol: new rows appended step by step.

They return the new keys and values instead of whole caches (``contracts/engine_io.py``), and the
session copies those into the slot's caches. ONNX Runtime on a CPU runs them, which is how a bundle
for JetPack 6.2 is checked where no TensorRT is; it is not meant to be fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.checks import check_layout
from edgekit.engine.one_by_one import Float32Array, OneByOneSession
from edgekit.engine.ort_cache import TIERS_TO_A_DOUBLING, tier_for
from edgekit.engine.ort_open import open_ort
from edgekit.errors import EngineError, first_line
from edgekit.models.config import ModelConfig

Caches = list[npt.NDArray[Any]]
"""Keys and values of one slot, [1, Hkv, C, D] each: layer 0's keys, its values, layer 1's."""


class AppendingCacheSession(OneByOneSession):
    """One ``trt103`` graph loaded in ONNX Runtime on a CPU.

    Args:
        graph: The ONNX file, its blobs beside it.
        config: Architecture of the model.
        max_context: Tokens a slot can hold.
        max_sequences: Cache slots.
        activation_dtype: Type of the graph's activations and caches.
        threads: Intra-op threads; None is the number of usable cores.
        prefill_chunk: Tokens of a prefill step.
        exact: Run the graph as it is written, without ONNX Runtime's optimizations.

    Raises:
        EngineError: ONNX Runtime refuses the graph, or it is of another dialect.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        graph: Path,
        *,
        config: ModelConfig,
        max_context: int,
        max_sequences: int = 1,
        activation_dtype: Literal["float16", "float32"] = "float32",
        threads: int | None = None,
        prefill_chunk: int = 512,
        exact: bool = False,
    ) -> None:
        super().__init__(
            open_ort(graph, "cpu", threads, cuda_graph=False, exact=exact),
            max_context=max_context,
            max_sequences=max_sequences,
            vocab_size=config.vocab_size,
            chunk=prefill_chunk,
            activation_dtype=activation_dtype,
        )
        self._config = config
        self._dtype = np.dtype(activation_dtype)
        layers = range(config.num_hidden_layers)
        self._past = [f(i) for i in layers for f in (engine_io.past_key, engine_io.past_value)]
        new = [f(i) for i in layers for f in (engine_io.new_key, engine_io.new_value)]
        self._outputs = [engine_io.LOGITS, *new]
        if not set(new) <= {output.name for output in self._session.get_outputs()}:
            raise EngineError(f"{graph.name} is not of the trt103 dialect")
        check_layout(self._session, graph.name, config)
        self._caches: list[Caches] = [self._empty(0) for _ in range(max_sequences)]

    def _step(self, slot: int, tokens: Sequence[int], start: int, wanted: int) -> Float32Array:
        """Run tokens at ``start``; returns the last ``wanted`` logits [wanted, V]."""
        count, stop = len(tokens), start + len(tokens)
        self._reserve(slot, start, stop)
        caches = self._caches[slot]
        positions, columns = np.arange(start, stop), np.arange(caches[0].shape[2])
        feed: dict[str, Any] = {
            engine_io.INPUT_IDS: np.array([tokens], np.int64),
            engine_io.POSITION_IDS: positions[None],
            engine_io.ATTENTION_MASK: (columns <= positions[:, None])[None, None],
            engine_io.WRITE_INDEX: np.array([start], np.int64),
            engine_io.LOGITS_INDEX: np.arange(count - wanted, count)[None, :, None],
            **dict(zip(self._past, caches, strict=True)),
        }
        try:
            logits, *rows = self._session.run(self._outputs, feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise EngineError(f"ONNX Runtime failed in a step: {first_line(error)}") from error
        result: Float32Array = np.asarray(logits[0], np.float32)
        self._require_finite(slot, result)
        for cache, new in zip(caches, rows, strict=True):
            cache[:, :, start:stop] = new
        self._lengths[slot] = stop
        return result

    def _forget(self, slot: int) -> None:
        self._caches[slot], self._lengths[slot] = self._empty(0), 0

    def _reserve(self, slot: int, held: int, rows: int) -> None:
        """Make a slot's caches at least ``rows`` long, keeping the first ``held`` rows."""
        if rows <= self._caches[slot][0].shape[2]:
            return
        tiers = TIERS_TO_A_DOUBLING["cpu"]
        wider = self._empty(tier_for(rows, self._max_context, tiers))
        for new, old in zip(wider, self._caches[slot], strict=True):
            new[:, :, :held] = old[:, :, :held]
        self._caches[slot] = wider

    def _empty(self, capacity: int) -> Caches:
        shape = (1, self._config.num_key_value_heads, capacity, self._config.head_dim)
        return [np.zeros(shape, self._dtype) for _ in self._past]
