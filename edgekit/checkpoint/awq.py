"""AWQ checkpoints as AutoAWQ writes them, version ``gemm`` (arXiv 2306.00978).

A module has ``qweight`` int32 [K, N / 8], ``qzeros`` int32 [G, N / 8] and ``scales`` float16
[G, N]. A word holds eight output channels, interleaved for the kernel's fast conversion: its
nibble i, lowest first, is channel ``(0, 2, 4, 6, 1, 3, 5, 7)[i]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.decode import FLOAT_DTYPES, FloatTensor
from edgekit.checkpoint.lazy import Float32Array
from edgekit.checkpoint.prequantized import (
    Int8Array,
    PrequantizedTensor,
    centre,
    check_part,
    none_if_zero,
    part,
    unpack_words,
)
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import CheckpointError, UnsupportedModelError

PARTS = ("qweight", "qzeros", "scales")
NIBBLE_OF_CHANNEL = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble that holds each of a word's channels; inverse of AutoAWQ's (0, 2, 4, 6, 1, 3, 5, 7)."""


@dataclass(frozen=True, slots=True)
class AwqLayout:
    """The parts of one module; see the module's docstring."""

    qweight: StoredTensor
    qzeros: StoredTensor
    scale: StoredTensor

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [N, K]."""
        return self.qweight.shape[1] * 8, self.qweight.shape[0]

    @property
    def groups(self) -> int:
        """G."""
        return self.scale.shape[0]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all its parts."""
        return self.qweight.size_bytes + self.qzeros.size_bytes + self.scale.size_bytes

    def codes(self, start: int, stop: int) -> Int8Array:
        """Return the centred codes of rows, int8 [rows, K]."""
        return _channels(self.qweight, start, stop)

    def zeros(self, start: int, stop: int) -> Int8Array | None:
        """Return the centred zero points of rows, int8 [rows, G]; None when all are 0."""
        return none_if_zero(_channels(self.qzeros, start, stop))

    def scales(self, start: int, stop: int) -> Float32Array:
        """Return the scales of rows, float32 [rows, G]."""
        return np.ascontiguousarray(FloatTensor(self.scale).columns(start, stop).T)


def _channels(packed: StoredTensor, start: int, stop: int) -> Int8Array:
    """Unpack output channels ``start:stop``, centred int8 [channels, first dimension]."""
    first, last = start // 8, -(-stop // 8)
    nibbles: npt.NDArray[np.uint8] = unpack_words(packed.mapped()[:, first:last], 4)
    words = nibbles.reshape(nibbles.shape[0], last - first, 8)[:, :, NIBBLE_OF_CHANNEL]
    channels = words.reshape(nibbles.shape[0], -1)[:, start - first * 8 : stop - first * 8]
    return centre(np.ascontiguousarray(channels.T), 4)


def read_awq(
    stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, PrequantizedTensor]:
    """Return the AWQ weights of a checkpoint by the key they stand for.

    Raises:
        UnsupportedModelError: A width or packing that is not read.
        CheckpointError: A part is missing or does not fit the others.
    """
    bits = quantization.get("bits", quantization.get("w_bit"))
    version = str(quantization.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise UnsupportedModelError(
            f"the checkpoint is AWQ of {bits} bits, version {version}; edgekit reads 4 bits, "
            "version gemm",
            "Use the unquantized checkpoint",
        )
    modules = [name[: -len(".qweight")] for name in stored if name.endswith(".qweight")]
    return {f"{name}.weight": _open(stored, name) for name in modules}


def _open(stored: Mapping[str, StoredTensor], module: str) -> PrequantizedTensor:
    qweight, qzeros, scale = (part(stored, f"{module}.{name}") for name in PARTS)
    if len(qweight.shape) != 2 or len(scale.shape) != 2 or qweight.shape[0] % scale.shape[0]:
        raise CheckpointError(
            f"{qweight.name} {list(qweight.shape)} and {scale.name} {list(scale.shape)} are not "
            "a packed weight and its scales"
        )
    groups, words = scale.shape[0], qweight.shape[1]
    check_part(qweight, qweight.shape)
    check_part(qzeros, (groups, words))
    check_part(scale, (groups, words * 8), FLOAT_DTYPES)
    return PrequantizedTensor(f"{module}.weight", AwqLayout(qweight, qzeros, scale), 4)
