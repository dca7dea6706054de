"""Mixed precision by measurement: which linears deserve smaller groups, which 8 bits?

A linear's sensitivity is the mean KL divergence (nats per token) of the model in which only it is
quantized. All those models are run side by side, layer by layer: each is one more residual stream,
born at its linear's layer, so every weight is read once and memory is bounded by one layer plus
``linears * tokens * hidden_size`` floats. Time grows with the square of the number of layers.

:func:`mixed_plan` needs no torch; :func:`measure_sensitivity` does (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.errors import RecipeError
from edgekit.models.config import (
    Linear,
    ModelConfig,
    all_linears,
    layer_linears,
    lm_head,
    tensor_shapes,
)
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibrate import CalibrationOptions, TensorSource, require_torch
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.plan import Schemes, bits_per_linear_weight
from edgekit.quant.scheme import PER_CHANNEL, QuantScheme

if TYPE_CHECKING:
    import torch

    from edgekit.quant.layer_reader import LayerReader

LOGITS_AT_ONCE = 1 << 23
"""Logits of one model held while it is compared, 32 MiB."""

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
    steps = []
    for name, ladder in rungs.items():
        unit = sensitivity[name] / _divergence(movable[name])
        for rung in range(1, len(ladder)):
            cost = ladder[rung][1] - ladder[rung - 1][1]
            gain = unit * (_divergence(ladder[rung - 1][0]) - _divergence(ladder[rung][0]))
            steps.append((-gain / cost, name, rung, cost))
    blocked = set()
    for _, name, rung, cost in sorted(steps):
        if cost > left:
            blocked.add(name)  # a later rung of it would skip one
        elif name not in blocked:
            chosen[name] = rungs[name][rung][0]
            left -= cost
    return chosen


def _rungs(spec: Linear, scheme: QuantScheme) -> list[tuple[QuantScheme, float]]:
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
    from edgekit.quant.torch_run import repeatable  # noqa: PLC0415 - needs torch

    settings = options or CalibrationOptions()
    reader = LayerReader(tensors, config, calibration, settings.device, progress)
    with torch.no_grad(), repeatable(settings.threads):
        reader.progress.advance(0, "embedding")
        streams = {"": reader.embed()}
        for index in range(config.num_hidden_layers):
            _advance_all(reader, index, plan, streams, settings.batch_of(reader.window))
        return _divergences(reader, plan, streams)


def _advance_all(
    reader: LayerReader,
    index: int,
    plan: Schemes,
    streams: dict[str, torch.Tensor],
    batch: int,
) -> None:
    """Run every stream through layer ``index`` and start those of its own linears."""
    full = reader.layer_tensors(index)
    size = reader.layer_bytes(index)
    count = reader.config.num_hidden_layers
    prefix = f"model.layers.{index}."
    variants = {}
    for spec in layer_linears(reader.config, index):
        scheme = plan[spec.name]
        if scheme is not None:
            key = f"{spec.name.removeprefix(prefix)}.weight"
            variants[spec.name] = (key, scheme)
    born = {}
    for name, (key, scheme) in variants.items():
        changed = {**full, key: _rounded(full[key], scheme)}
        born[name] = reader.run_layer(changed, streams[""], batch)
        reader.progress.advance(size, f"layer {index + 1} of {count}, {name.removeprefix(prefix)}")
    for done, (name, stream) in enumerate(streams.items(), 1):
        streams[name] = reader.run_layer(full, stream, batch)
        reader.progress.advance(size, f"layer {index + 1} of {count}, {done}/{len(streams)}")
    streams.update(born)


def sensitivity_bytes(tensors: TensorSource, config: ModelConfig, plan: Schemes) -> int:
    """Return the stored bytes that pass: a layer's count once for each model run through it."""
    runs, total = 1, tensors("model.embed_tokens.weight").stored_bytes
    shapes = tensor_shapes(config)
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        size = sum(tensors(name).stored_bytes for name in shapes if name.startswith(prefix))
        runs += sum(plan[spec.name] is not None for spec in layer_linears(config, index))
        total += runs * size
    head = lm_head(config)
    runs += plan[head.name] is not None
    return total + (runs - 1) * tensors(head.weight_key).stored_bytes


def _rounded(weight: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
    from edgekit.quant.gptq import round_to_nearest, search_scales  # noqa: PLC0415 - needs torch

    return round_to_nearest(weight, search_scales(weight, scheme), scheme).dequantize()


def _divergences(
    reader: LayerReader, plan: Schemes, streams: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Return each stream's divergence from the full model's, one window's logits at a time."""
    spec = lm_head(reader.config)
    norm = reader.read("model.norm.weight")
    head = reader.read(spec.weight_key)
    heads = dict.fromkeys(streams, head)
    scheme = plan[spec.name]
    if scheme is not None:
        streams[spec.name] = streams[""]
        heads[spec.name] = _rounded(head, scheme)
    totals = dict.fromkeys((name for name in streams if name), 0.0)
    flat = {name: stream.flatten(0, 1) for name, stream in streams.items()}
    tokens = flat[""].shape[0]
    step = max(1, LOGITS_AT_ONCE // head.shape[0])
    size, done = reader.open(spec.weight_key).stored_bytes, 0
    for start in range(0, tokens, step):
        part = slice(start, min(start + step, tokens))
        reference = reader.logits(norm, head, flat[""][part])
        likely = reference.softmax(-1)
        for name in totals:
            other = reader.logits(norm, heads[name], flat[name][part])
            totals[name] += _divergence_sum(likely, other.sub_(reference))
        passed = size * len(totals) * part.stop // tokens
        reader.progress.advance(passed - done, f"LM head, {part.stop}/{tokens} tokens")
        done = passed
    return {x.name: totals[x.name] / tokens for x in all_linears(reader.config) if x.name in totals}


def _divergence_sum(likely: torch.Tensor, change: torch.Tensor) -> float:
    """Return the summed KL divergence of logits that differ by ``change`` [S, V], destroyed.

    It is ``log E[exp(d)] - E[d]`` under the first model's probabilities: in this form float32 is
    enough, since d is small where two log-probabilities are not.
    """
    change -= (change.amax(-1, keepdim=True) - 80).clamp_min_(0)  # lest exp overflow; cancels out
    mean = (likely * change).sum(-1).double()
    growth = (likely * change.expm1_()).sum(-1).double()
    return float((growth.log1p() - mean).sum())
