"""Graphs that Optimum exports behind the session protocol: a cache a slot, grown by the graph.

Every step returns new, longer key and value tensors, which are fed to the next one without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import optimum_io
from edgekit.engine.one_by_one import Float32Array, OneByOneSession
from edgekit.engine.ort_open import open_ort
from edgekit.errors import EngineError, first_line

LOGITS_CHUNK_BYTES = 64 * 1024 * 1024
"""Logits of a prefill step are at most this large: the graph makes those of every token."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Sizes of a graph's cache.

    Attributes:
        layers: Key and value pairs.
        heads: Key/value heads.
        dim: Size of a head.
        vocab_size: Width of the logits; None where the graph leaves it open.
        positions: Whether the graph takes ``position_ids``.
    """

    layers: int
    heads: int
    dim: int
    vocab_size: int | None
    positions: bool


class GrowingCacheSession(OneByOneSession):
    """One exported graph loaded in ONNX Runtime on a CPU.

    Args:
        graph: The ONNX file, its external data beside it.
        max_context: Tokens a slot can hold.
        max_sequences: Cache slots.
        vocab_size: Width of the logits where the graph leaves it open.
        threads: Intra-op threads; None is the number of usable cores.
        prefill_chunk: Most tokens of a prefill step.
        exact: Compute in float32 as the graph is written, without fused integer kernels.

    Raises:
        EngineError: ONNX Runtime refuses the graph, or its inputs are not those of
            :mod:`edgekit.contracts.optimum_io`.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        graph: Path,
        *,
        max_context: int,
        max_sequences: int = 1,
        vocab_size: int = 0,
        threads: int | None = None,
        prefill_chunk: int = 512,
        exact: bool = False,
    ) -> None:
        session = open_ort(graph, "cpu", threads, cuda_graph=False, exact=exact)
        self.layout = _read_layout(session, graph.name)
        width = self.layout.vocab_size or vocab_size
        rows = LOGITS_CHUNK_BYTES // (4 * max(1, width))
        super().__init__(
            session,
            max_context=max_context,
            max_sequences=max_sequences,
            vocab_size=width,
            chunk=max(1, min(prefill_chunk, rows)),
        )
        layers = range(self.layout.layers)
        self._past = [name for i in layers for name in optimum_io.past_names(i)]
        self._outputs = [optimum_io.LOGITS]
        self._outputs += [name for i in layers for name in optimum_io.present_names(i)]
        self._caches: list[list[Any]] = [self._empty() for _ in range(max_sequences)]

    def _step(self, slot: int, tokens: Sequence[int], start: int, wanted: int) -> Float32Array:
        """Run tokens at ``start``; returns the last ``wanted`` logits [wanted, V]."""
        self._rewind(slot, start)
        count = len(tokens)
        feed = {
            optimum_io.INPUT_IDS: _ids([list(tokens)]),
            optimum_io.ATTENTION_MASK: _ids(np.ones((1, start + count), np.int64)),
            **dict(zip(self._past, self._caches[slot], strict=True)),
        }
        if self.layout.positions:
            feed[optimum_io.POSITION_IDS] = _ids([list(range(start, start + count))])
        try:
            results = self._session.run_with_ort_values(self._outputs, feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise EngineError(f"ONNX Runtime failed: {first_line(error)}") from error
        logits = np.array(results[0].numpy()[0], np.float32)
        self._caches[slot], self._lengths[slot] = results[1:], start + count
        self._require_finite(slot, logits)
        return logits[-wanted:]

    def _forget(self, slot: int) -> None:
        self._rewind(slot, 0)

    def _rewind(self, slot: int, length: int) -> None:
        """Forget a slot's tokens from position ``length`` on."""
        if length == self._lengths[slot]:
            return
        if length == 0:
            self._caches[slot] = self._empty()
        else:
            kept = (value.numpy()[:, :, :length] for value in self._caches[slot])
            self._caches[slot] = [_ort_value(np.ascontiguousarray(rows)) for rows in kept]
        self._lengths[slot] = length

    def _empty(self) -> list[Any]:
        shape = (1, self.layout.heads, 0, self.layout.dim)
        return [_ort_value(np.zeros(shape, np.float32)) for _ in self._past]


def _read_layout(session: Any, name: str) -> CacheLayout:
    """Check a graph's inputs and outputs.

    Raises:
        EngineError: They are not those of Optimum, or the layers' caches differ.
    """
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    plain = {optimum_io.INPUT_IDS, optimum_io.ATTENTION_MASK, optimum_io.POSITION_IDS}
    past = set(inputs) - plain
    layers = len(past) // 2
    wanted = {n for i in range(layers) for n in optimum_io.past_names(i)}
    made = {n for i in range(layers) for n in optimum_io.present_names(i)}
    shapes = {(inputs[n].type, len(inputs[n].shape), *inputs[n].shape[1::2]) for n in past}
    needed = {optimum_io.INPUT_IDS, optimum_io.ATTENTION_MASK}
    if not past or past != wanted or not needed <= set(inputs):
        unknown = ", ".join(sorted(past ^ wanted)[:3]) or "no cache"
        raise EngineError(f"{name} does not have the inputs of Optimum's decoders: {unknown}")
    if not {optimum_io.LOGITS, *made} <= set(outputs):
        raise EngineError(f"{name} does not have the outputs of Optimum's decoders")
    kind, rank, *sizes = shapes.pop()
    if shapes or kind != "tensor(float)" or rank != 4 or not all(type(n) is int for n in sizes):
        raise EngineError(
            f"{name} has caches of another layout than float32 [B, heads, tokens, dim]",
            "Models whose layers differ, or with multi-query caches of rank 3, are not run",
        )
    width = outputs[optimum_io.LOGITS].shape[-1]
    vocab = width if isinstance(width, int) else None
    return CacheLayout(layers, sizes[0], sizes[1], vocab, optimum_io.POSITION_IDS in inputs)


def _ort_value(array: npt.NDArray[Any]) -> Any:
    import onnxruntime as ort  # noqa: PLC0415 - optional, and slow to import

    return ort.OrtValue.ortvalue_from_numpy(array)


def _ids(rows: Any) -> Any:
    return _ort_value(np.asarray(rows, np.int64))
