"""Sessions whose slots have caches of their own: sequences are run one after the other.

What is common to the graphs of Optimum and those of the ``trt103`` dialect; they differ in how a
step feeds and keeps its caches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.engine.checks import (
    check_distinct,
    check_room,
    check_slot,
    check_tokens,
    not_finite,
)
from edgekit.errors import EngineError

Float32Array = npt.NDArray[np.float32]


class OneByOneSession(ABC):
    """An ``InferenceSession`` that runs one sequence a step.

    A subclass has ``_caches``, one entry a slot, and keeps ``_lengths`` in step with them.

    Args:
        session: The ONNX Runtime session.
        max_context: Tokens a slot can hold.
        max_sequences: Cache slots.
        vocab_size: Width of the logits.
        chunk: Tokens of a prefill step.
        activation_dtype: What the graph computes in.
    """

    _caches: list[Any]

    def __init__(
        self,
        session: Any,
        *,
        max_context: int,
        max_sequences: int,
        vocab_size: int,
        chunk: int,
        activation_dtype: str = "float32",
    ) -> None:
        self._session = session
        self._max_context = max_context
        self._max_sequences = max_sequences
        self._vocab_size = vocab_size
        self._chunk = chunk
        self._activation_dtype = activation_dtype
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
        return self._vocab_size

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
        check_distinct(slots)
        steps = list(zip(slots, tokens, positions, strict=True))
        for slot, token, position in steps:
            self._check(slot, [token], position)
        outcomes = [self._decode_one(*step) for step in steps]  # one's failure stops no other
        for outcome in outcomes:
            if isinstance(outcome, EngineError):
                raise outcome
        return np.stack([row for row in outcomes if not isinstance(row, EngineError)])

    def release(self, slot: int) -> None:
        """Forget what a slot holds; see ``InferenceSession``."""
        check_slot(slot, self._max_sequences)
        self._forget(slot)

    def close(self) -> None:
        """Free the engine and its caches; the session is of no use after it."""
        for name in ("_session", "_caches"):
            self.__dict__.pop(name, None)

    @abstractmethod
    def _step(self, slot: int, tokens: Sequence[int], start: int, wanted: int) -> Float32Array:
        """Run tokens at ``start``; returns the last ``wanted`` logits [wanted, V].

        Raises:
            EngineError: The engine fails, or the logits are not finite.
        """

    @abstractmethod
    def _forget(self, slot: int) -> None:
        """Empty a slot's caches."""

    def _decode_one(self, slot: int, token: int, position: int) -> Float32Array | EngineError:
        """Return a token's logits [V], or why there are none."""
        try:
            return np.asarray(self._step(slot, [token], position, 1)[0])
        except EngineError as error:
            return error

    def _check(self, slot: int, tokens: Sequence[int], start: int) -> None:
        check_slot(slot, self._max_sequences)
        held = self._lengths[slot]
        check_room(slot, start, len(tokens), held=held, max_context=self._max_context)
        check_tokens(tokens, self._vocab_size)

    def _require_finite(self, slot: int, logits: Float32Array) -> None:
        """Empty a slot whose logits [S, V] are not finite, and say so."""
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(logits.sum(axis=-1)).all()
        if not finite:
            self._forget(slot)
            raise not_finite(slot, self._activation_dtype)
