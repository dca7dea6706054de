"""Which linear is stored how, and why: rules in order, the last match wins."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.errors import RecipeError
from edgekit.models.config import Linear, ModelConfig, all_linears
from edgekit.quant.scheme import QuantScheme

Schemes = Mapping[str, QuantScheme | None]
"""Linear name to scheme; None is a dense float16 weight."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A scheme for the linears whose name matches ``pattern`` (shell wildcards).

    Attributes:
        pattern: ``model.layers.*``, ``model.layers.0.mlp.down_proj``, ``lm_head``.
        scheme: None keeps the weight dense.
        reason: Where the rule comes from, for reports.
    """

    pattern: str
    scheme: QuantScheme | None
    reason: str


def plan_quantization(config: ModelConfig, rules: Sequence[Rule]) -> dict[str, QuantScheme | None]:
    """Return the scheme of every linear.

    Raises:
        RecipeError: A rule matches nothing, a linear is matched by no rule, or a group size does
            not divide a linear's input channels.
    """
    linears = all_linears(config)
    schemes: dict[str, QuantScheme | None] = {}
    for rule in rules:
        matched = [x for x in linears if fnmatch.fnmatchcase(x.name, rule.pattern)]
        if not matched:
            raise RecipeError(
                f"{rule.reason}: pattern {rule.pattern!r} matches no linear of the model",
                f"Linears are named like {linears[0].name}",
            )
        schemes.update((x.name, rule.scheme) for x in matched)
    for linear in linears:
        if linear.name not in schemes:
            raise RecipeError(f"no rule of the recipe matches {linear.name}")
        _check_group(linear, schemes[linear.name])
    return {x.name: schemes[x.name] for x in linears}


def bits_per_linear_weight(config: ModelConfig, schemes: Schemes) -> float:
    """Return stored bits per weight over all linears, head and scales included."""
    weights = bits = 0.0
    for linear in all_linears(config):
        size = linear.in_features * linear.out_features
        scheme = schemes[linear.name]
        weights += size
        bits += size * (16 if scheme is None else scheme.bits_per_weight(linear.in_features))
    return bits / weights


def _check_group(linear: Linear, scheme: QuantScheme | None) -> None:
    if scheme is None or not scheme.group_size or not linear.in_features % scheme.group_size:
        return
    fitting = [size for size in (128, 64, 32) if not linear.in_features % size]
    remedy = f"Use a group size of {fitting[0]}" if fitting else "Use one scale per channel (int8)"
    raise RecipeError(
        f"{linear.name} has {linear.in_features} input channels, not a multiple of group size "
        f"{scheme.group_size}",
        remedy,
    )
