"""The one way the rest of edgekit reads a weight: as float32 rows, a strip at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


class LazyTensor(Protocol):
    """A weight on disk, decoded on demand.

    Implementations decode bf16/f16/f32, block-scaled fp8, packed GPTQ/AWQ codes, or merge a
    LoRA: the reader does not know which.
    """

    @property
    def name(self) -> str:
        """Checkpoint key, ``model.layers.0.mlp.down_proj.weight``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape; a linear's weight is [out_features, in_features]."""

    @property
    def stored_bytes(self) -> int:
        """Bytes it takes in the checkpoint."""

    def rows(self, start: int, stop: int) -> Float32Array:
        """Return rows ``start:stop`` along the first axis, float32, C-contiguous.

        A one-dimensional tensor has elements as rows. The array may be reused memory of the
        caller's thread only if documented by the implementation; by default it is fresh.
        """


def read_all(tensor: LazyTensor) -> Float32Array:
    """Return the whole tensor as float32."""
    return tensor.rows(0, tensor.shape[0])


def strips(tensor: LazyTensor, rows: int) -> Iterator[tuple[int, Float32Array]]:
    """Yield ``(start, rows)`` strips of at most ``rows`` rows."""
    for start in range(0, tensor.shape[0], rows):
        yield start, tensor.rows(start, min(start + rows, tensor.shape[0]))


def raw_rows(tensor: LazyTensor, start: int, stop: int) -> npt.NDArray[Any]:
    """Return rows as uint16 bits of bfloat16 where the tensor has them so, else as float32.

    A tensor that may have them so offers ``bf16_rows(start, stop)``.
    """
    raw = getattr(tensor, "bf16_rows", None)
    rows = raw(start, stop) if raw is not None else None
    return tensor.rows(start, stop) if rows is None else rows
