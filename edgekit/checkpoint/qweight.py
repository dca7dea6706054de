"""What GPTQ's and AWQ's checkpoints have in common: ``qweight``, ``qzeros`` and ``scales``.

Both store the scales [G, N] and pack the zero points [G, N] along N; what differs is how a word is
filled and along which axis the weight is packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.checkpoint.decode import FLOAT_DTYPES, FloatTensor
from edgekit.checkpoint.lazy import Float32Array
from edgekit.checkpoint.prequantized import check_part, part
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import CheckpointError

PARTS = ("qweight", "qzeros", "scales")


@dataclass(frozen=True, slots=True)
class QweightParts:
    """The parts of one module.

    Attributes:
        qweight: int32, the packed codes.
        qzeros: int32 [G, N * bits / 32], the packed zero points.
        scale: Float [G, N].
    """

    qweight: StoredTensor
    qzeros: StoredTensor
    scale: StoredTensor

    @property
    def groups(self) -> int:
        """G."""
        return self.scale.shape[0]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all its parts."""
        return self.qweight.size_bytes + self.qzeros.size_bytes + self.scale.size_bytes

    def scales(self, start: int, stop: int) -> Float32Array:
        """Return the scales of rows, float32 [rows, G]."""
        return np.ascontiguousarray(FloatTensor(self.scale).columns(start, stop).T)


def packed_modules(stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Yield the modules that have a ``qweight``."""
    return (name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))


def open_parts(
    stored: Mapping[str, StoredTensor], module: str, *, bits: int, along_rows: bool
) -> tuple[StoredTensor, StoredTensor, StoredTensor]:
    """Return a module's ``qweight``, ``qzeros`` and ``scales``, which fit each other.

    Args:
        stored: All tensors.
        module: Its name.
        bits: Of a code.
        along_rows: Whether a word of ``qweight`` holds codes of several rows (N), not of one.

    Raises:
        CheckpointError: One is missing or does not fit the others.
    """
    qweight, qzeros, scale = (part(stored, f"{module}.{name}") for name in PARTS)
    words = 32 // bits
    flat = len(qweight.shape) == len(scale.shape) == 2 and 0 not in scale.shape
    rows = qweight.shape[-1] * (words if along_rows else 1)
    if not flat or rows % words:
        raise CheckpointError(
            f"{qweight.name} {list(qweight.shape)} and {scale.name} {list(scale.shape)} are not "
            "a packed weight and its scales"
        )
    check_part(qweight, qweight.shape)
    check_part(scale, (scale.shape[0], rows), FLOAT_DTYPES)
    check_part(qzeros, (scale.shape[0], rows // words))
    return qweight, qzeros, scale


def check_groups(module: str, columns: int, groups: int) -> None:
    """Refuse groups of unequal size.

    Raises:
        CheckpointError: The input channels cannot be divided among the groups.
    """
    if columns % groups:
        raise CheckpointError(f"{module} has {columns} input channels in {groups} groups")
