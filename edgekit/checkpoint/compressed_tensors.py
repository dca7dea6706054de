"""Checkpoints of the compressed-tensors library (llm-compressor), weight-only as far as we read.

| format | parts of a module |
|---|---|
| ``pack-quantized`` | ``weight_packed`` int32 [N, ceil(K * bits / 32)] along K, lowest bits first, codes plus ``2**(bits - 1)``; ``weight_scale`` [N, G]; ``weight_shape`` int64 [2]; maybe ``weight_zero_point`` int32, packed along N; maybe ``weight_g_idx`` int32 [K] |
| ``int-quantized``, ``naive-quantized`` | ``weight`` int8 [N, K]; ``weight_scale`` [N, G]; maybe ``weight_zero_point`` int8 [N, G] |
| ``float-quantized`` | ``weight`` E4M3 [N, K]; ``weight_scale`` [N, 1] |

Activation quantization is left out: the engine runs activations in 16 bits, which is closer to the
model the checkpoint was made from. Source: compressed_tensors/compressors, version 0.20.
"""  # noqa: E501 - a table row cannot be wrapped

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.checkpoint.decode import (
    FLOAT_DTYPES,
    BlockScaledFp8Tensor,
    FloatTensor,
    check_fp8_scale,
)
from edgekit.checkpoint.lazy import Float32Array, LazyTensor
from edgekit.checkpoint.prequantized import (
    CODE_BITS,
    Int8Array,
    PrequantizedTensor,
    centre,
    check_part,
    none_if_zero,
    part,
    read_order,
    unpack_channels,
    unpack_words,
)
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import CheckpointError, UnsupportedModelError

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
PARTS = (
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
)
_REFUSED = ("kv_cache_scheme", "sparsity_config", "transform_config")
"""Sections that change more than how weights are stored; inert when null or empty."""


@dataclass(frozen=True, slots=True)
class CompressedLayout:
    """The parts of one module; see the module's docstring.

    Attributes:
        weight: ``weight_packed``, or an int8 ``weight``.
        scale: ``weight_scale``.
        zero_point: ``weight_zero_point``; None when symmetric.
        size: Logical shape [N, K].
        bits: 4 or 8.
    """

    weight: StoredTensor
    scale: StoredTensor
    zero_point: StoredTensor | None
    size: tuple[int, int]
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [N, K]."""
        return self.size

    @property
    def groups(self) -> int:
        """G."""
        return self.scale.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all its parts."""
        zeros = self.zero_point.size_bytes if self.zero_point else 0
        return self.weight.size_bytes + self.scale.size_bytes + zeros

    def codes(self, start: int, stop: int) -> Int8Array:
        """Return the centred codes of rows, int8 [rows, K]."""
        rows = self.weight.mapped()[start:stop]
        if self.weight.dtype == "I8":
            return np.array(rows)
        return centre(unpack_words(rows, self.bits)[:, : self.size[1]], self.bits)

    def zeros(self, start: int, stop: int) -> Int8Array | None:
        """Return the centred zero points of rows, int8 [rows, G]; None when all are 0."""
        if self.zero_point is None:
            return None
        stored = self.zero_point.mapped()
        if self.zero_point.dtype == "I8":
            return none_if_zero(np.array(stored[start:stop]))
        zeros = unpack_channels(stored.T, self.bits, start, stop)
        return none_if_zero(centre(np.ascontiguousarray(zeros.T), self.bits))

    def scales(self, start: int, stop: int) -> Float32Array:
        """Return the scales of rows, float32 [rows, G]."""
        return FloatTensor(self.scale).rows(start, stop)


def read_compressed(
    stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, LazyTensor]:
    """Return the quantized weights of a compressed-tensors checkpoint by their key.

    Raises:
        UnsupportedModelError: A format or section that is not read.
        CheckpointError: A part is missing or does not fit the others.
    """
    _check_sections(quantization)
    split = [name.rpartition(".") for name in stored]
    packed = {module for module, _, kind in split if kind == "weight_packed"}
    scaled = {module for module, _, kind in split if kind == "weight_scale"}
    weights: dict[str, LazyTensor] = {}
    for module in packed:
        weights[f"{module}.weight"] = _open_packed(stored, module)
    for module in scaled - packed:
        weights[f"{module}.weight"] = _open_plain(stored, module)
    return weights


def _check_sections(quantization: Mapping[str, Any]) -> None:
    groups = quantization.get("config_groups")
    rows = list(groups.values()) if isinstance(groups, Mapping) else []
    own = {row.get("format") for row in rows if isinstance(row, Mapping)} - {None}
    # "mixed-precision" stands at the top when each group names its own format.
    formats = own or {quantization.get("format")}
    unknown = sorted(str(name) for name in formats if name not in FORMATS)
    if unknown:
        raise UnsupportedModelError(
            f"the checkpoint is compressed-tensors in format {unknown[0]}; edgekit reads "
            f"{', '.join(FORMATS)}",
            "Use the unquantized checkpoint",
        )
    for key in _REFUSED:
        section = quantization.get(key)
        dense = isinstance(section, Mapping) and section.get("format") == "dense"
        if section and not dense:
            raise UnsupportedModelError(
                f"the checkpoint's quantization_config has {key}, which edgekit does not model",
                "Use a weight-only quantized checkpoint, or the unquantized one",
            )


def _open_packed(stored: Mapping[str, StoredTensor], module: str) -> PrequantizedTensor:
    packed, shape = part(stored, f"{module}.weight_packed"), part(stored, f"{module}.weight_shape")
    check_part(shape, (2,), frozenset({"I64", "I32"}))
    rows, columns = (int(size) for size in shape.mapped())
    widths = [bits for bits in CODE_BITS if packed.shape == (rows, -(-columns * bits // 32))]
    if not widths or columns < 1:
        raise UnsupportedModelError(
            f"{packed.name} {list(packed.shape)} is no {rows} by {columns} weight of 4 or 8 bits",
            "Use the unquantized checkpoint",
        )
    check_part(packed, packed.shape)
    layout = _layout(stored, module, packed, (rows, columns), widths[0])
    order = read_order(stored.get(f"{module}.weight_g_idx"), layout.groups, columns)
    return PrequantizedTensor(f"{module}.weight", layout, widths[0], order)


def _open_plain(stored: Mapping[str, StoredTensor], module: str) -> LazyTensor:
    weight, scale = part(stored, f"{module}.weight"), part(stored, f"{module}.weight_scale")
    if weight.dtype == "F8_E4M3" and len(weight.shape) == 2:
        block = (1, weight.shape[1])
        check_fp8_scale(weight, scale, block)
        return BlockScaledFp8Tensor(weight, scale, block)
    if weight.dtype != "I8" or len(weight.shape) != 2:
        raise CheckpointError(
            f"{weight.path.name}: {weight.name} has scales, so it must be I8 or F8_E4M3 [N, K]; it "
            f"is {weight.dtype} {list(weight.shape)}"
        )
    layout = _layout(stored, module, weight, (weight.shape[0], weight.shape[1]), 8)
    return PrequantizedTensor(weight.name, layout, 8)


def _layout(
    stored: Mapping[str, StoredTensor],
    module: str,
    weight: StoredTensor,
    size: tuple[int, int],
    bits: int,
) -> CompressedLayout:
    """Check scales and zero points against the weight's shape."""
    rows, columns = size
    scale = part(stored, f"{module}.weight_scale")
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    if not groups or columns % groups:
        raise UnsupportedModelError(
            f"{scale.name} has shape {list(scale.shape)}; edgekit reads one scale per row or equal "
            f"groups of the {columns} input channels",
            "Use the unquantized checkpoint",
        )
    check_part(scale, (rows, groups), FLOAT_DTYPES)
    zero_point = stored.get(f"{module}.weight_zero_point")
    if zero_point is not None and zero_point.dtype == "I32":
        check_part(zero_point, (-(-rows * bits // 32), groups))
    elif zero_point is not None:
        check_part(zero_point, (rows, groups), frozenset({"I8"}))
    return CompressedLayout(weight, scale, zero_point, size, bits)
