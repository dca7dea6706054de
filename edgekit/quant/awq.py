"""AWQ: scale up the input channels that matter, and undo it in what comes before.

Source: arXiv 2306.00978. For a channel scale s, ``(W s) (x / s)`` is the same function, but the
rounding error of a channel shrinks by s relative to its weight. ``1 / s`` is folded exactly into
the norm (q, k, v; gate, up; LM head), the rows of v_proj (o_proj) or of up_proj (down_proj).

The loss of a candidate is the exact mean squared output error under the input's second moment, so
no activation is replayed during the search. Clipping is left to the scale search that follows,
which weighs channels by their energy. Needs torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgekit.quant.gptq import round_to_nearest, search_scales
from edgekit.quant.hessian import output_error
from edgekit.quant.scheme import QuantScheme

SEARCH_ROWS = 1024
"""Output channels, evenly spaced, that the search looks at; the scales are per input channel."""
STEPS = 20
"""Exponents tried: 0, 0.05, ... 0.95, as in the paper's grid search."""


def search_channel_scales(
    weights: Sequence[torch.Tensor],
    schemes: Sequence[QuantScheme],
    hessian: torch.Tensor,
    *,
    exponents: Sequence[int],
    share: int = 1,
    heads: int = 0,
) -> torch.Tensor:
    """Return the scales [K] of least output error over the linears that read one input.

    Candidates are ``rms(x)^a``, normalized so that the largest times the smallest is 1; a = 0
    gives all ones, so the result is never worse than none.

    Args:
        weights: float32 [N_i, K].
        schemes: Theirs.
        hessian: float32 [K, K].
        exponents: Each linear's scales are stored multiplied by ``2**exponent``.
        share: Consecutive blocks of K that must have the same scales (the query heads of one
            key/value head, for o_proj).
        heads: Channels of one block when ``share`` > 1 (head_dim).
    """
    energy = hessian.diagonal().sqrt()
    energy = energy.clamp_min(1e-4 * float(energy.mean()) + 1e-30)
    if share > 1:
        energy = _shared(energy, share, heads)
    weights = [weight[:: max(1, weight.shape[0] // SEARCH_ROWS)] for weight in weights]
    best, least = torch.ones_like(energy), float("inf")
    for step in range(STEPS):
        scale = energy ** (step / STEPS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        loss = sum(
            _loss(weight, scheme, hessian, scale, exponent)
            for weight, scheme, exponent in zip(weights, schemes, exponents, strict=True)
        )
        if loss < least:
            best, least = scale, float(loss)
    return best


def _shared(energy: torch.Tensor, share: int, head_dim: int) -> torch.Tensor:
    """Average the energy over the ``share`` query heads that read one key/value head."""
    heads = energy.view(-1, share, head_dim)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def _loss(
    weight: torch.Tensor,
    scheme: QuantScheme,
    hessian: torch.Tensor,
    scale: torch.Tensor,
    exponent: int,
) -> float:
    """Return the output error of rounding ``weight * scale``, mean over tokens, sum over N."""
    scaled = weight * scale
    importance = hessian.diagonal() / scale.square()
    scales = search_scales(scaled, scheme, importance, exponent=exponent)
    rounded = round_to_nearest(scaled, scales, scheme)
    return output_error(rounded.dequantize() / scale - weight, hessian)
