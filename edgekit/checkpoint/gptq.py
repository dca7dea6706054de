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

from edgekit.checkpoint.decode import FLOAT_DTYPES, FloatTensor
from edgekit.checkpoint.lazy import Float32Array
from edgekit.checkpoint.prequantized import (
    CODE_BITS,
    Int8Array,
    PrequantizedTensor,
    centre,
    check_part,
    none_if_zero,
    part,
    read_order,
    unpack_words,
)
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import CheckpointError, UnsupportedModelError

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}
"""What each ``checkpoint_format`` subtracted from its zero points before packing them."""


@dataclass(frozen=True, slots=True)
class GptqLayout:
    """The parts of one module; see the module's docstring."""

    qweight: StoredTensor
    qzeros: StoredTensor
    scale: StoredTensor
    bits: int
    zero_offset: int

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [N, K]."""
        return self.qweight.shape[1], self.qweight.shape[0] * 32 // self.bits

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
        return centre(unpack_words(self.qweight.mapped()[:, start:stop].T, self.bits), self.bits)

    def zeros(self, start: int, stop: int) -> Int8Array | None:
        """Return the centred zero points of rows, int8 [rows, G]; None when all are 0."""
        words = 32 // self.bits
        first, last = start // words, -(-stop // words)
        zeros = unpack_words(self.qzeros.mapped()[:, first:last], self.bits)
        zeros = zeros[:, start - first * words : stop - first * words]
        # Adding after unpacking wraps 15 to 0, as AutoGPTQ does: `(zeros + 1) & (2**bits - 1)`.
        zeros = (zeros + np.uint8(self.zero_offset)) & np.uint8(2**self.bits - 1)
        return none_if_zero(np.ascontiguousarray(centre(zeros, self.bits).T))

    def scales(self, start: int, stop: int) -> Float32Array:
        """Return the scales of rows, float32 [rows, G]."""
        return np.ascontiguousarray(FloatTensor(self.scale).columns(start, stop).T)


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
    modules = [name[: -len(".qweight")] for name in stored if name.endswith(".qweight")]
    return {f"{name}.weight": _open(stored, name, int(bits), offset) for name in modules}


def _open(
    stored: Mapping[str, StoredTensor], module: str, bits: int, offset: int
) -> PrequantizedTensor:
    qweight, qzeros, scale = (part(stored, f"{module}.{name}") for name in PARTS[:3])
    words = 32 // bits
    if len(qweight.shape) != 2 or len(scale.shape) != 2 or qweight.shape[1] % words:
        raise CheckpointError(
            f"{qweight.name} {list(qweight.shape)} and {scale.name} {list(scale.shape)} are not "
            "a packed weight and its scales"
        )
    rows, groups = qweight.shape[1], scale.shape[0]
    check_part(qweight, qweight.shape)
    check_part(scale, (groups, rows), FLOAT_DTYPES)
    check_part(qzeros, (groups, rows // words))
    layout = GptqLayout(qweight, qzeros, scale, bits, offset)
    columns = layout.shape[1]
    order = read_order(stored.get(f"{module}.g_idx"), groups, columns)
    if order is None and columns % groups:
        raise CheckpointError(f"{module} has {columns} input channels in {groups} groups")
    return PrequantizedTensor(f"{module}.weight", layout, bits, order)
