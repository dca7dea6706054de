"""A quantized weight in memory, in the layout that is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.scheme import QuantScheme


@dataclass(frozen=True, slots=True)
class WeightError:
    """How far a quantized weight is from the original, summed over its elements."""

    squared_error: float
    squared_weight: float
    max_abs_error: float

    @property
    def relative_rmse(self) -> float:
        """Root of squared error over squared weight; 0 for an all-zero weight."""
        return (
            float((self.squared_error / self.squared_weight) ** 0.5) if self.squared_weight else 0.0
        )


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A linear's weight as codes and scales, transposed to [K, N] for ``MatMul``.

    Attributes:
        scheme: How it was quantized.
        in_features: K.
        out_features: N.
        packed: 4 bits: uint8 [K, N // 2], the ONNX INT4 layout of a [K, N] tensor (element
            2i in the low nibble of byte i, two's complement). 8 bits: int8 [K, N].
        scales: float16 [K // group_size, N].
        error: Distance from the original weight.
    """

    scheme: QuantScheme
    in_features: int
    out_features: int
    packed: npt.NDArray[np.integer[Any]]
    scales: npt.NDArray[np.float16]
    error: WeightError
