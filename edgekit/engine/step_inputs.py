"""What a step feeds a graph beside the caches: by mask (``standard``) or by lengths (``ort``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.select_graph import TEMPERATURES

Arrays = dict[str, npt.NDArray[Any]]
ALIGNMENT = 256
"""Of an input in the buffer: what CUDA's own allocations have."""


class StepInputs(Protocol):
    """The inputs of one step shape: B slots, S new tokens, K wanted logits, capacity C."""

    arrays: Arrays
    """May be replaced by others of their shapes, to lie where a step wants them."""
    on_host: frozenset[str]
    """Those that stay in main memory whatever the device."""

    def set_tokens(self, tokens: Sequence[int], start: int) -> None:
        """Fill the one row of a prefill step."""

    def set_idle(self, lengths: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Make every row harmless: it writes where its slot has no token yet."""

    def set_row(self, row: int, token: int, position: int) -> None:
        """Fill one row of a decode step."""


def pack(arrays: Arrays) -> tuple[npt.NDArray[np.uint8], Arrays]:
    """Return a buffer that holds the arrays, and them as views of it: one copy moves them all."""
    places, size = [], 0
    for array in arrays.values():
        places.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    packed = np.zeros(size, np.uint8)
    views: Arrays = {}
    for (name, array), place in zip(arrays.items(), places, strict=True):
        part = packed[place : place + array.nbytes]
        views[name] = part.view(array.dtype).reshape(array.shape)
        views[name][...] = array
    return packed, views


def _common(batch: int, tokens: int, wanted: int) -> Arrays:
    """Return the inputs that both dialects have."""
    places = np.arange(tokens - wanted, tokens, dtype=np.int64)[None, :, None]
    return {
        engine_io.INPUT_IDS: np.zeros((batch, tokens), np.int64),
        engine_io.LOGITS_INDEX: np.repeat(places, batch, axis=0),
    }


class MaskInputs:
    """Inputs of the ``standard`` dialect.

    Args:
        batch: B.
        tokens: S.
        wanted: K, the last of the tokens.
        capacity: C, the width of the mask.
    """

    on_host: frozenset[str] = frozenset()

    def __init__(self, batch: int, tokens: int, wanted: int, capacity: int) -> None:
        self.arrays = {
            **_common(batch, tokens, wanted),
            engine_io.POSITION_IDS: np.zeros((batch, tokens), np.int64),
            engine_io.ATTENTION_MASK: np.zeros((batch, 1, tokens, capacity), np.bool_),
            engine_io.WRITE_INDEX: np.zeros(batch, np.int64),
        }

    def set_tokens(self, tokens: Sequence[int], start: int) -> None:
        """Fill the one row of a prefill step."""
        positions = np.arange(start, start + len(tokens))
        self.arrays[engine_io.INPUT_IDS][0] = tokens
        self.arrays[engine_io.POSITION_IDS][0] = positions
        mask = self.arrays[engine_io.ATTENTION_MASK]
        mask[0, 0] = np.arange(mask.shape[-1]) <= positions[:, None]
        self.arrays[engine_io.WRITE_INDEX][0] = start

    def set_idle(self, lengths: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Make every row harmless; it sees row 0, since a row that sees nothing is NaN."""
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


class LengthInputs:
    """Inputs of the ``ort`` dialect.

    Args:
        batch: B.
        tokens: S.
        wanted: K, the last of the tokens.
        capacity: C; given as the total length of decode steps, whatever is held, where
            ``fixed_total`` is set. A captured CUDA graph never reads that input again, and what it
            decides (how many parts attention is split into) must do for every length of the tier.
        fixed_total: Whether it is.
    """

    on_host = frozenset({engine_io.TOTAL_SEQUENCE_LENGTH})

    def __init__(
        self, batch: int, tokens: int, wanted: int, capacity: int, *, fixed_total: bool
    ) -> None:
        self._fixed_total = fixed_total
        self._total = np.full(1, capacity, np.int32)
        self.arrays = {
            **_common(batch, tokens, wanted),
            engine_io.SEQLENS_K: np.zeros(batch, np.int32),
            engine_io.TOTAL_SEQUENCE_LENGTH: self._total,
        }

    def set_tokens(self, tokens: Sequence[int], start: int) -> None:
        """Fill the one row of a prefill step."""
        self.arrays[engine_io.INPUT_IDS][0] = tokens
        self.arrays[engine_io.SEQLENS_K][0] = start + len(tokens) - 1
        self._total[0] = start + len(tokens)

    def set_idle(self, lengths: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Make every row harmless."""
        self.arrays[engine_io.SEQLENS_K][:] = lengths
        self._set_total()

    def set_row(self, row: int, token: int, position: int) -> None:
        """Fill one row of a decode step."""
        self.arrays[engine_io.INPUT_IDS][row, 0] = token
        self.arrays[engine_io.SEQLENS_K][row] = position
        self._set_total()

    def _set_total(self) -> None:
        if not self._fixed_total:
            self._total[0] = self.arrays[engine_io.SEQLENS_K].max() + 1


def step_inputs(
    names: set[str], shape: tuple[int, int, int], capacity: int, device: str
) -> StepInputs:
    """Return the inputs of the dialect a graph with these input names is of.

    Args:
        names: The graph's inputs.
        shape: (B, S, K).
        capacity: C.
        device: ``cpu`` or ``cuda``.
    """
    inputs: StepInputs
    if engine_io.SEQLENS_K in names:
        inputs = LengthInputs(*shape, capacity, fixed_total=device != "cpu")
    else:
        inputs = MaskInputs(*shape, capacity)
    if TEMPERATURES in names:  # of a joined selection
        inputs.arrays[TEMPERATURES] = np.ones((shape[0], 1), np.float32)
    return inputs
