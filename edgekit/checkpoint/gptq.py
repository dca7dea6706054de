"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them (arXiv 2210.17323).

A module has, with ``P = 32 / bits`` codes per int32 word:

| part | shape | content |
|---|---|---|
| ``qweight`` | int32 [K / P, N] | code of channel k in bits ``(k % P) * bits`` of word k // P |
| ``qzeros`` | int32 [G, N / P] | zero points, packed along N; format ``gptq`` stores them minus 1 |
| ``scales`` | float [G, N] | |
| ``g_idx`` | int32 [K] | group of each input channel; in order unless ``desc_act`` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.checkpoint import qweight
from edgekit.checkpoint.prequantized import (
    CODE_BITS,
    Int8Array,
    PrequantizedTensor,
    centre,
    none_if_zero,
    read_order,
    unpack_channels,
    unpack_words,
)
from edgekit.checkpoint.qweight import QweightParts, check_groups, open_parts, packed_modules
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import UnsupportedModelError

PARTS = (*qweight.PARTS, "g_idx")
_ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}
"""What each ``checkpoint_format`` subtracted from its zero points before packing them."""


@dataclass(frozen=True, slots=True)
class GptqLayout(QweightParts):
    """The parts of one module; see the module's docstring.

    Attributes:
        bits: 4 or 8.
        zero_offset: What its format subtracted from the zero points.
    """

    bits: int
    zero_offset: int

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [N, K]."""
        return self.qweight.shape[1], self.qweight.shape[0] * 32 // self.bits

    def codes(self, start: int, stop: int) -> Int8Array:
        """Return the centred codes of rows, int8 [rows, K]."""
        return centre(unpack_words(self.qweight.mapped()[:, start:stop].T, self.bits), self.bits)

    def zeros(self, start: int, stop: int) -> Int8Array | None:
        """Return the centred zero points of rows, int8 [rows, G]; None when all are 0."""
        zeros = unpack_channels(self.qzeros.mapped(), self.bits, start, stop)
        # Adding after unpacking wraps 15 to 0, as AutoGPTQ does: `(zeros + 1) & (2**bits - 1)`.
        zeros = (zeros + np.uint8(self.zero_offset)) & np.uint8(2**self.bits - 1)
        return none_if_zero(np.ascontiguousarray(centre(zeros, self.bits).T))


def read_gptq(
    stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, PrequantizedTensor]:
    """Return the GPTQ weights of a checkpoint by the key they stand for.

    Raises:
        UnsupportedModelError: A width, packing or per-module override that is not read.
        CheckpointError: A part is missing or does not fit the others.
    """
    bits = quantization.get("bits")
    offset = _ZERO_OFFSET.get(quantization.get("checkpoint_format") or "gptq")
    if bits not in CODE_BITS or offset is None or quantization.get("dynamic"):
        found = {key: quantization.get(key) for key in ("bits", "checkpoint_format", "dynamic")}
        raise UnsupportedModelError(
            f"the checkpoint is GPTQ with {found}; edgekit reads 4 or 8 bits in format gptq or "
            "gptq_v2, alike in all modules",
            "Use the unquantized checkpoint",
        )
    modules = packed_modules(stored)
    return {f"{name}.weight": _open(stored, name, int(bits), offset) for name in modules}


def _open(
    stored: Mapping[str, StoredTensor], module: str, bits: int, offset: int
) -> PrequantizedTensor:
    parts = open_parts(stored, module, bits=bits, along_rows=False)
    layout = GptqLayout(*parts, bits, offset)
    order = read_order(stored.get(f"{module}.g_idx"), layout.groups, layout.shape[1])
    if order is None:
        check_groups(module, layout.shape[1], layout.groups)
    return PrequantizedTensor(f"{module}.weight", layout, bits, order)
