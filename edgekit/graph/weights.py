"""What the graph builder knows of a weight: its type, its shape and where its bytes are.

Names are the checkpoint's, with these endings for a linear ``L``: ``L.codes`` and ``L.scales``
when quantized (both transposed, [K, N] and [G, N]), ``L.weight`` [K, N] when dense, ``L.bias``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekit.contracts.manifest import BITS, Dtype

ROPE_COS = "rope.cos"
ROPE_SIN = "rope.sin"


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One stored weight.

    Attributes:
        name: Initializer name.
        dtype: Element type as stored.
        shape: Logical shape (an int4 tensor counts elements, not bytes).
        location: External-data file, relative to the graph's folder, POSIX.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    location: str

    @property
    def size_bytes(self) -> int:
        """Length of the external data."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def codes_name(linear: str) -> str:
    """Return the initializer name of a quantized linear's codes."""
    return f"{linear}.codes"


def scales_name(linear: str) -> str:
    """Return the initializer name of a quantized linear's scales."""
    return f"{linear}.scales"


def dense_name(linear: str) -> str:
    """Return the initializer name of an unquantized linear's transposed weight."""
    return f"{linear}.weight"


def bias_name(linear: str) -> str:
    """Return the initializer name of a linear's bias."""
    return f"{linear}.bias"
