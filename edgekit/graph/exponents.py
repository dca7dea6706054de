"""Powers of two that keep a float16 graph inside float16's range (65504).

Real Qwen2 checkpoints have residual activations of 1e4 to 1e5 and overflow in float16. Scaling by
powers of two is exact in binary floating point, so the model's function does not change:

- ``residual`` r: embedding, o_proj and down_proj are multiplied by 2**-r. The residual stream
  shrinks by 2**-r; RMSNorm is invariant once its epsilon is multiplied by 2**-2r.
- ``mlp[i]`` m: up_proj of layer i is multiplied by 2**-m and down_proj by 2**m. The product of
  gate and up, which feeds down_proj, shrinks by 2**-m.
- ``value[i]`` v: v_proj by 2**-v and o_proj by 2**v, which shrinks values and their average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

FLOAT16_MAX = 65504.0
HEADROOM = 16.0
"""Factor kept free above the largest activation seen: other inputs may go higher."""


@dataclass(frozen=True, slots=True)
class Exponents:
    """Exponents of two, all >= 0; empty tuples mean zero for every layer."""

    residual: int = 0
    mlp: tuple[int, ...] = field(default=())
    value: tuple[int, ...] = field(default=())

    def of_mlp(self, layer: int) -> int:
        """Return the exponent of a layer's gated product."""
        return self.mlp[layer] if self.mlp else 0

    def of_value(self, layer: int) -> int:
        """Return the exponent of a layer's values."""
        return self.value[layer] if self.value else 0

    def of_weight(self, name: str) -> int:
        """Return e such that the stored weight (and bias) ``name`` is multiplied by 2**e.

        Args:
            name: ``model.embed_tokens`` or a linear's name.
        """
        if name == "model.embed_tokens":
            return -self.residual
        if name == "lm_head":
            return 0
        layer, module = int(name.split(".")[2]), name.rsplit(".", 1)[1]
        by_module = {
            "o_proj": self.of_value(layer) - self.residual,
            "down_proj": self.of_mlp(layer) - self.residual,
            "up_proj": -self.of_mlp(layer),
            "v_proj": -self.of_value(layer),
        }
        return by_module.get(module, 0)

    def of_bias(self, name: str) -> int:
        """Return e such that the bias of linear ``name`` is multiplied by 2**e.

        An o_proj or down_proj bias is added to its output, so only the residual's exponent counts.
        """
        module = name.rsplit(".", 1)[-1]
        return -self.residual if module in {"o_proj", "down_proj"} else self.of_weight(name)

    def to_dict(self) -> dict[str, int | list[int]]:
        """Return the JSON form stored in a manifest."""
        return {"residual": self.residual, "mlp": list(self.mlp), "value": list(self.value)}


def needed_exponent(amax: float) -> int:
    """Return the smallest e >= 0 with ``amax * HEADROOM * 2**-e <= 65504``."""
    if amax * HEADROOM <= FLOAT16_MAX:
        return 0
    return math.ceil(math.log2(amax * HEADROOM / FLOAT16_MAX))


def choose_exponents(
    residual_amax: float, mlp_amax: Sequence[float], value_amax: Sequence[float]
) -> Exponents:
    """Choose exponents from measured absolute maxima of the reference model.

    Args:
        residual_amax: Largest |residual| over all layers and tokens.
        mlp_amax: Per layer, largest |silu(gate) * up|.
        value_amax: Per layer, largest |v|.
    """
    return Exponents(
        residual=needed_exponent(residual_amax),
        mlp=tuple(needed_exponent(a) for a in mlp_amax),
        value=tuple(needed_exponent(a) for a in value_amax),
    )
