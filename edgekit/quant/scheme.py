"""How one weight is stored: bits, group size, how scales are found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["rtn", "gptq", "awq", "awq-gptq"]
ScaleSearch = Literal["absmax", "mse"]
PER_CHANNEL = 0
"""``group_size`` of one scale per output channel."""
_LABEL = re.compile(r"w(?P<bits>[48])-(?:channel|g(?P<size>[1-9][0-9]{0,5}))")


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Symmetric integer weight quantization; zero point 0 (TensorRT takes no other).

    Attributes:
        bits: 4 (codes in [-8, 7]) or 8 (codes in [-127, 127]).
        group_size: Input channels that share a scale; 0 is one scale per output channel.
        scale_search: ``absmax`` maps the largest weight to the largest code; ``mse`` picks
            the scale of least squared error.
        algorithm: ``rtn`` needs no data; ``gptq`` and ``awq`` need calibration.
    """

    bits: Literal[4, 8] = 4
    group_size: int = 128
    scale_search: ScaleSearch = "mse"
    algorithm: Algorithm = "rtn"

    def groups(self, in_features: int) -> int:
        """Return the number of groups along ``in_features``; a ragged tail is not allowed."""
        size = self.group_size or in_features
        if in_features % size:
            msg = f"{in_features} input channels are not a multiple of group size {size}"
            raise ValueError(msg)
        return in_features // size

    def bits_per_weight(self, in_features: int) -> float:
        """Return stored bits per weight, float16 scales included."""
        return self.bits + 16 * self.groups(in_features) / in_features

    @property
    def label(self) -> str:
        """Short name: ``w4-g128``, ``w8-channel``."""
        group = f"g{self.group_size}" if self.group_size else "channel"
        return f"w{self.bits}-{group}"


def scheme_of_label(label: str) -> QuantScheme:
    """Return the scheme a :attr:`QuantScheme.label` names (bits and group size only).

    Raises:
        ValueError: It is no such label.
    """
    found = _LABEL.fullmatch(label)
    if found is None:
        raise ValueError(f"{label[:40]!r} is no scheme")
    return QuantScheme(4 if found["bits"] == "4" else 8, int(found["size"] or PER_CHANNEL))
