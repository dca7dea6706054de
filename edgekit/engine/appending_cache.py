"""Graphs of the ``trt103`` dialect behind the session protocol: new rows appended step by step.

They return the new keys and values instead of whole caches (``contracts/engine_io.py``), and the
session copies those into the slot's caches. ONNX Runtime on a CPU runs them, which is how a bundle
for JetPack 6.2 is checked where no TensorRT is; it is not meant to be fast. Several sequences are
decoded one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.ort import open_ort
from edgekit.engine.ort_cache import TIERS_TO_A_DOUBLING, tier_for
from edgekit.errors import ContextOverflowError, EngineError
from edgekit.models.config import ModelConfig

Float32Array = npt.NDArray[np.float32]
Caches = list[npt.NDArray[Any]]
"""Keys and values of one slot, [1, Hkv, C, D] each: layer 0's keys, its values, layer 1's."""


class AppendingCacheSession:
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
        self._session = open_ort(graph, "cpu", threads, cuda_graph=False, exact=exact)
        self._config = config
        self._max_context = max_context
        self._max_sequences = max_sequences
        self._dtype = np.dtype(activation_dtype)
        self._chunk = prefill_chunk
        layers = range(config.num_hidden_layers)
        self._past = [f(i) for i in layers for f in (engine_io.past_key, engine_io.past_value)]
        new = [f(i) for i in layers for f in (engine_io.new_key, engine_io.new_value)]
        self._outputs = [engine_io.LOGITS, *new]
        if not set(new) <= {output.name for output in self._session.get_outputs()}:
            raise EngineError(f"{graph.name} is not of the trt103 dialect")
        self._caches: list[Caches] = [self._empty(0) for _ in range(max_sequences)]
        self._lengths = [0] * max_sequences

    @property
    def max_context(self) -> int:
        """Tokens a slot can hold."""
        return self._max_context

    @property
    def max_sequences(self) -> int:
        """Slots that can be decoded at once."""
        return self._max_sequences

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._config.vocab_size

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> Float32Array:
        """Run tokens at positions ``start`` onward in a slot; see ``InferenceSession``."""
        self._check(slot, tokens, start)
        parts = []
        for begin in range(0, len(tokens), self._chunk):
            chunk = tokens[begin : begin + self._chunk]
            parts.append(self._step(slot, chunk, start + begin, len(chunk) if all_logits else 1))
        return np.concatenate(parts) if all_logits else np.array(parts[-1][0])

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Float32Array:
        """Run one token in each of ``slots``; see ``InferenceSession``."""
        if len(set(slots)) != len(slots) or not slots:
            raise EngineError(f"slots {list(slots)} are empty or repeat")
        steps = list(zip(slots, tokens, positions, strict=True))
        for slot, token, position in steps:
            self._check(slot, [token], position)
        rows, failure = [], None
        for slot, token, position in steps:
            step = ([token], position, 1)
            try:
                rows.append(self._step(slot, *step)[0])
            except EngineError as error:
                failure = failure or error  # the other slots still get their token
        if failure is not None:
            raise failure
        return np.stack(rows)

    def release(self, slot: int) -> None:
        """Forget what a slot holds; see ``InferenceSession``."""
        self._check_slot(slot)
        self._caches[slot], self._lengths[slot] = self._empty(0), 0

    def close(self) -> None:
        """Free the engine and its caches; the session is of no use after it."""
        for name in ("_session", "_caches"):
            self.__dict__.pop(name, None)

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
            first = str(error).strip().splitlines()[0]
            raise EngineError(f"ONNX Runtime failed in a step: {first}") from error
        result: Float32Array = np.asarray(logits[0], np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(result.sum(axis=-1)).all()
        if not finite:
            self.release(slot)
            raise EngineError(
                f"the model gave NaN or infinite logits in slot {slot}",
                "Verify the bundle; if it is whole, build it again with an 8-bit recipe",
            )
        for cache, new in zip(caches, rows, strict=True):
            cache[:, :, start:stop] = new
        self._lengths[slot] = stop
        return result

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

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self._max_sequences:
            raise EngineError(f"there is no slot {slot}; the session has {self._max_sequences}")

    def _check(self, slot: int, tokens: Sequence[int], start: int) -> None:
        self._check_slot(slot)
        if not tokens:
            raise EngineError("there are no tokens to run")
        if not 0 <= start <= self._lengths[slot]:
            raise EngineError(f"slot {slot} holds {self._lengths[slot]} tokens, not {start}")
        if start + len(tokens) > self._max_context:
            raise ContextOverflowError(
                f"{start + len(tokens)} tokens do not fit a context of {self._max_context}",
                "Shorten the prompt, or build the bundle with a larger --max-context",
            )
        wrong = [token for token in tokens if not 0 <= token < self.vocab_size]
        if wrong:
            raise EngineError(
                f"token {wrong[0]} is not in the vocabulary of {self.vocab_size}",
                "Use the tokenizer that belongs to the model",
            )
