"""Weights in memory, and a session that runs the reference: no engine, no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from factories import make_config, random_tensors

from edgekit.errors import CheckpointError
from edgekit.evaluate.reference import ReferenceModel
from edgekit.models.families import model_config_from_hf

Array = npt.NDArray[np.float32]


@dataclass
class ArrayTensor:
    """A ``LazyTensor`` over an array; remembers the largest read."""

    name: str
    values: Array
    largest_read: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def stored_bytes(self) -> int:
        return self.values.nbytes

    def rows(self, start: int, stop: int) -> Array:
        assert 0 <= start < stop <= self.values.shape[0]
        part = self.values[start:stop].copy()
        self.largest_read = max(self.largest_read, part.size)
        return part


@dataclass
class ArrayTensors:
    """Opens tensors by name, as a checkpoint does."""

    arrays: Mapping[str, Array]
    opened: dict[str, ArrayTensor] = field(default_factory=dict)

    def __call__(self, name: str) -> ArrayTensor:
        if name not in self.arrays:
            raise CheckpointError(f"no tensor {name}")
        return self.opened.setdefault(name, ArrayTensor(name, self.arrays[name]))


def make_model(
    change: Callable[[dict[str, Any]], None] | None = None,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    **config: Any,
) -> ReferenceModel:
    """Return a random reference model; ``change`` edits its weights by name."""
    hf_config = make_config(**config)
    arrays = random_tensors(hf_config, seed)
    if change is not None:
        change(arrays)
    return ReferenceModel(
        model_config_from_hf(hf_config), ArrayTensors(arrays), **dict(options or {})
    )


def random_windows(vocab: int, lengths: Sequence[int], seed: int = 1) -> list[Any]:
    """Return random token ids, one array a length."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, length) for length in lengths]


class ReferenceSession:
    """An ``InferenceSession`` that recomputes each slot's whole sequence with the reference."""

    def __init__(
        self, model: ReferenceModel, max_context: int = 64, max_sequences: int = 2
    ) -> None:
        self.model = model
        self.max_context = max_context
        self.max_sequences = max_sequences
        self.vocab_size = model.config.vocab_size
        self.slots: dict[int, list[int]] = {}
        self.longest_prefill = 0
        self.widest_decode = 0

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> Array:
        held = self.slots.get(slot, [])
        assert 0 <= slot < self.max_sequences
        assert start <= len(held)
        assert start + len(tokens) <= self.max_context
        self.longest_prefill = max(self.longest_prefill, len(tokens))
        self.slots[slot] = [*held[:start], *map(int, tokens)]
        logits = self.model.logits([np.asarray(self.slots[slot])])[0][start:]
        return logits if all_logits else logits[-1]

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Array:
        assert len(set(slots)) == len(slots)
        self.widest_decode = max(self.widest_decode, len(slots))
        rows = zip(slots, tokens, positions, strict=True)
        return np.stack([self.prefill(slot, [token], at) for slot, token, at in rows])

    def release(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def close(self) -> None:
        self.slots.clear()
