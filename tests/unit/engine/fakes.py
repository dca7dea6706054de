"""A session that needs no engine: it writes a script, whatever it is fed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class ScriptedSession:
    """An ``InferenceSession`` whose greedy continuation of any prompt is ``script``."""

    def __init__(self, script: Sequence[int], vocab_size: int, max_context: int = 256) -> None:
        self.script = list(script)
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.max_sequences = 1
        self.fed: list[tuple[str, int, list[int]]] = []
        self._prompt = 0

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32]:
        """Return the logits of the script's first token."""
        assert slot == 0
        assert not all_logits
        self.fed.append(("prefill", start, list(tokens)))
        self._prompt = start + len(tokens)
        return self._logits(0)

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Return the logits of the script's token after ``positions``."""
        assert list(slots) == [0]
        assert positions[0] < self.max_context
        self.fed.append(("decode", positions[0], list(tokens)))
        return self._logits(positions[0] - self._prompt + 1)[None]

    def release(self, slot: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def _logits(self, step: int) -> npt.NDArray[np.float32]:
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[self.script[step]] = 1
        return logits
