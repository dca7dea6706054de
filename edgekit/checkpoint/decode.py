"""Stored weights as float32 rows: bf16, f16, f32 and DeepSeek's block-scaled fp8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import Float32Array
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import CheckpointError

FLOAT_DTYPES = frozenset({"BF16", "F16", "F32"})


@dataclass(frozen=True, slots=True)
class FloatTensor:
    """A weight stored in a float type."""

    stored: StoredTensor

    @property
    def name(self) -> str:
        """Checkpoint key."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.stored.shape

    @property
    def stored_bytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.stored.size_bytes

    def rows(self, start: int, stop: int) -> Float32Array:
        """Return rows as fresh float32."""
        part = self.stored.mapped()[start:stop]
        if self.stored.dtype == "BF16":
            return bf16_to_float32(part)
        return np.array(part, dtype=np.float32, order="C")

    def columns(self, start: int, stop: int) -> Float32Array:
        """Return columns of a matrix as fresh float32 [rows, stop - start]."""
        part = self.stored.mapped()[:, start:stop]
        if self.stored.dtype == "BF16":
            return bf16_to_float32(part)
        return np.array(part, dtype=np.float32, order="C")

    def bf16_rows(self, start: int, stop: int) -> npt.NDArray[np.uint16] | None:
        """Return the raw bits of rows without a copy; None unless stored as bf16."""
        if self.stored.dtype != "BF16":
            return None
        return self.stored.mapped()[start:stop]


@dataclass(frozen=True, slots=True)
class BlockScaledFp8Tensor:
    """A DeepSeek fp8 weight: E4M3 values, one float32 factor per block.

    Source: DeepSeek-V3's ``weight_scale_inv`` [ceil(N / bn), ceil(K / bk)], which multiplies;
    ``quantization_config.weight_block_size`` is [bn, bk].
    """

    stored: StoredTensor
    scale: StoredTensor
    block: tuple[int, int]

    @property
    def name(self) -> str:
        """Checkpoint key."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [N, K]."""
        return self.stored.shape

    @property
    def stored_bytes(self) -> int:
        """Bytes in the checkpoint, scales included."""
        return self.stored.size_bytes + self.scale.size_bytes

    def rows(self, start: int, stop: int) -> Float32Array:
        """Return rows as fresh float32."""
        bn, bk = self.block
        values: Float32Array = e4m3_table()[self.stored.mapped()[start:stop]]
        scales = FloatTensor(self.scale).rows(start // bn, (stop - 1) // bn + 1)
        by_row = scales[(np.arange(start, stop) // bn) - start // bn]  # [rows, K / bk]
        values *= np.repeat(by_row, bk, axis=1)[:, : values.shape[1]]
        return values


def check_fp8_scale(stored: StoredTensor, scale: StoredTensor, block: tuple[int, int]) -> None:
    """Refuse an fp8 weight whose scales do not cover it.

    Raises:
        CheckpointError: Names the tensor and both shapes.
    """
    two = len(stored.shape) == 2
    wanted = tuple(-(-dim // size) for dim, size in zip(stored.shape, block, strict=two))
    if not two or scale.shape != wanted or scale.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{scale.name} is {scale.dtype} {list(scale.shape)}, blocks of {list(block)} over "
            f"{stored.name} {list(stored.shape)} need {list(wanted)}"
        )


def bf16_to_float32(bits: npt.NDArray[np.uint16]) -> Float32Array:
    """Return bf16 bits as float32: they are its upper half."""
    wide = np.empty(bits.shape, np.uint32)
    np.left_shift(bits, np.uint32(16), out=wide, dtype=np.uint32, casting="unsafe")
    return wide.view(np.float32)


@lru_cache(maxsize=1)
def e4m3_table() -> Float32Array:
    """Return the value of each E4M3 byte, float32 [256].

    Source: OCP 8-bit Floating Point (OFP8), E4M3: bias 7, no infinity, NaN at 0x7F and 0xFF.
    """
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    value[(codes & 0x7F) == 0x7F] = np.nan
    return (np.where(codes & 0x80, -value, value)).astype(np.float32)
