"""Mixed precision by measurement: which linears deserve smaller groups, which 8 bits?

A linear's sensitivity is the mean KL divergence (nats per token) of the model in which only it is
quantized, to second order and estimated by random probes (:mod:`edgekit.quant.probes`): it costs as
much as twenty passes over the tokens, whatever the number of layers.

:func:`mixed_plan` needs no torch; :func:`measure_sensitivity` does (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgekit.errors import RecipeError
from edgekit.models.config import (
    Linear,
    ModelConfig,
    all_linears,
    lm_head,
    tensor_shapes,
)
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibrate import CalibrationOptions, TensorSource, require_torch
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.plan import Schemes, bits_per_linear_weight
from edgekit.quant.scheme import PER_CHANNEL, QuantScheme

PROBES = 16
"""Random probes of every token; fewer are too noisy (docs/benchmarks.md)."""

_Ladder = list[tuple[QuantScheme, float]]
"""Schemes of one linear and the bits it takes in each, cheapest first."""

LADDER: tuple[tuple[QuantScheme, float], ...] = (
    (QuantScheme(4, 128), 1.15),
    (QuantScheme(4, 64), 1.0),
    (QuantScheme(4, 32), 0.83),
    (QuantScheme(8, PER_CHANNEL), 0.005),
)
"""What a linear may be stored as, cheapest first, and its divergence relative to groups of 64.

Measured on trained 7 M and 25 M parameter decoders with searched scales (1.15 and 1.15, 0.82 and
0.84); int8 follows from (7 / 127)^2 and the wider range of a whole channel. Each rung takes away
less per added bit than the one before it, so greedy climbing is optimal.
"""


def mixed_plan(
    config: ModelConfig,
    plan: Schemes,
    sensitivity: Mapping[str, float],
    bits_per_weight: float,
) -> dict[str, QuantScheme | None]:
    """Spend a bit budget where measured divergence falls most per bit.

    Every 4-bit linear starts at the ladder's cheapest rung that fits its input channels and climbs
    while the budget lasts: smaller groups for most, 8 bits for the few most sensitive.

    Args:
        config: The architecture.
        plan: Scheme of every linear; those that are dense or 8 bits already are kept.
        sensitivity: From :func:`measure_sensitivity`.
        bits_per_weight: Budget over all linears, head and scales included.

    Raises:
        RecipeError: Not even the cheapest rungs fit the budget.
    """
    linears = {spec.name: spec for spec in all_linears(config)}
    movable = {n: s for n, s in plan.items() if s is not None and s.bits == 4 and n in sensitivity}
    rungs = {name: _rungs(linears[name], movable[name]) for name in movable}
    chosen = {**plan, **{name: rungs[name][0][0] for name in movable}}
    total = sum(spec.in_features * spec.out_features for spec in linears.values())
    left = (bits_per_weight - bits_per_linear_weight(config, chosen)) * total
    if left < 0:
        raise RecipeError(
            f"the model takes {bits_per_weight - left / total:.3f} bits per weight at least, the "
            f"mixed budget is {bits_per_weight:g}",
            "Use a higher mixed_bits_per_weight",
        )
    units = {name: sensitivity[name] / _divergence(scheme) for name, scheme in movable.items()}
    return {**chosen, **_climb(rungs, units, left)}


def _climb(
    ladders: Mapping[str, _Ladder], units: Mapping[str, float], left: float
) -> dict[str, QuantScheme]:
    """Take the steps that pay most per bit while bits are ``left``; return who got where.

    Args:
        ladders: Of each linear.
        units: Divergence of each linear in groups of 64.
        left: Bits to spend.
    """
    steps = []
    for name, ladder in ladders.items():
        for rung in range(1, len(ladder)):
            cost = ladder[rung][1] - ladder[rung - 1][1]
            relative = _divergence(ladder[rung - 1][0]) - _divergence(ladder[rung][0])
            steps.append((-units[name] * relative / cost, name, rung, cost))
    reached: dict[str, QuantScheme] = {}
    blocked = set()
    for _, name, rung, cost in sorted(steps):
        if cost > left:
            blocked.add(name)  # a later rung of it would skip one
        elif name not in blocked:
            reached[name] = ladders[name][rung][0]
            left -= cost
    return reached


def _rungs(spec: Linear, scheme: QuantScheme) -> _Ladder:
    """Return the schemes that fit a linear and the bits it takes in each, cheapest first."""
    size = spec.in_features * spec.out_features
    fitting = [s for s, _ in LADDER if not s.group_size or not spec.in_features % s.group_size]
    return [
        (
            replace(rung, scale_search=scheme.scale_search, algorithm=scheme.algorithm),
            rung.bits_per_weight(spec.in_features) * size,
        )
        for rung in fitting
    ]


def _divergence(scheme: QuantScheme) -> float:
    """Return a scheme's divergence relative to groups of 64."""
    known = {(s.bits, s.group_size): value for s, value in LADDER}
    return known.get((scheme.bits, scheme.group_size), 1.0)


def measure_sensitivity(
    tensors: TensorSource,
    config: ModelConfig,
    plan: Schemes,
    calibration: CalibrationSet,
    *,
    options: CalibrationOptions | None = None,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Return the KL divergence, nats per token, of quantizing each linear alone.

    Linears are rounded to nearest as the plan's scheme says, with searched scales; those the plan
    keeps dense are left out. A thousand tokens or two are enough to rank.

    Progress advances by :func:`sensitivity_bytes`.

    Raises:
        MissingExtraError: torch is not installed.
        CalibrationError: A token id is out of range.
        QuantizationError: The device does not exist.
    """
    torch = require_torch("Measured sensitivity")
    from edgekit.quant.layer_reader import LayerReader  # noqa: PLC0415 - needs torch
    from edgekit.quant.probes import probe_model  # noqa: PLC0415 - needs torch
    from edgekit.quant.torch_run import repeatable  # noqa: PLC0415 - needs torch

    settings = options or CalibrationOptions()
    reader = LayerReader(tensors, config, calibration, settings.device, progress)
    with torch.no_grad(), repeatable(settings.threads):
        return probe_model(reader, plan, PROBES)


def sensitivity_bytes(tensors: TensorSource, config: ModelConfig) -> int:
    """Return the stored bytes that pass: a tensor's count once for each pass through it."""
    return probe_bytes(tensors, config, PROBES)


def probe_bytes(tensors: TensorSource, config: ModelConfig, probes: int) -> int:
    """Return the stored bytes that pass when ``probes`` are sent through a model."""
    head = tensors(lm_head(config).weight_key).stored_bytes
    layers = sum(
        tensors(name).stored_bytes
        for name in tensor_shapes(config)
        if name.startswith("model.layers.")
    )
    embedding = tensors("model.embed_tokens.weight").stored_bytes
    return embedding + (probes + 3) * layers + (probes + 4) * head
