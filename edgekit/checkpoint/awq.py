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

from edgekit.checkpoint.prequantized import (
    Int8Array,
    PrequantizedTensor,
    centre,
    none_if_zero,
    unpack_channels,
)
from edgekit.checkpoint.qweight import (
    QweightParts,
    check_groups,
    open_parts,
    packed_modules,
)
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import UnsupportedModelError

NIBBLE_OF_CHANNEL = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble that holds each of a word's channels; inverse of AutoAWQ's (0, 2, 4, 6, 1, 3, 5, 7)."""


@dataclass(frozen=True, slots=True)
class AwqLayout(QweightParts):
    """The parts of one module; see the module's docstring."""

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [N, K]."""
        return self.qweight.shape[1] * 8, self.qweight.shape[0]

    def codes(self, start: int, stop: int) -> Int8Array:
        """Return the centred codes of rows, int8 [rows, K]."""
        return _channels(self.qweight, start, stop)

    def zeros(self, start: int, stop: int) -> Int8Array | None:
        """Return the centred zero points of rows, int8 [rows, G]; None when all are 0."""
        return none_if_zero(_channels(self.qzeros, start, stop))


def _channels(packed: StoredTensor, start: int, stop: int) -> Int8Array:
    """Unpack output channels ``start:stop``, centred int8 [channels, first dimension]."""
    channels = unpack_channels(packed.mapped(), 4, start, stop, NIBBLE_OF_CHANNEL)
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
    return {f"{name}.weight": _open(stored, name) for name in packed_modules(stored)}


def _open(stored: Mapping[str, StoredTensor], module: str) -> PrequantizedTensor:
    layout = AwqLayout(*open_parts(stored, module, bits=4, along_rows=True))
    check_groups(module, layout.shape[1], layout.groups)
    return PrequantizedTensor(f"{module}.weight", layout, 4)
