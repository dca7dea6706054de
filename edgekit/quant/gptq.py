"""GPTQ: round one input channel at a time, and let the rest make up for its error.

Source: arXiv 2210.17323. Channels are taken in order of falling activation energy ("act-order")
while groups keep their places and get their scales beforehand ("static groups"), so the stored
order never changes and the engine reorders nothing. Scales are searched for the least error
weighted by each channel's energy. Needs torch (extra ``calibrate``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgekit.quant.hessian import inverse_cholesky
from edgekit.quant.packing import SMALLEST_SCALE
from edgekit.quant.rtn import CODE_RANGE
from edgekit.quant.scheme import QuantScheme

SEARCH_FACTORS = (1.04, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.62)
"""Candidate scales, relative to absmax."""
SEARCH_REFINEMENTS = 2
BLOCK = 128
"""Channels whose error is spread within a small block before the rest is updated by one product."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A linear's weight as codes and scales, before it is packed.

    Attributes:
        codes: int8 [N, K].
        scales: float32 [N, K // group_size], as an engine reads them: :func:`stored_scales`.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """Return float32 [N, K]."""
        rows, groups = self.scales.shape
        parts = self.codes.view(rows, groups, -1).float() * self.scales[..., None]
        return parts.view(rows, -1)


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scheme: QuantScheme,
    *,
    damping: float = 0.01,
    act_order: bool = True,
) -> Rounded:
    """Quantize ``weight`` [N, K] for inputs of second moment ``hessian`` [K, K].

    Args:
        weight: float32.
        hessian: float32, mean of x xᵀ.
        scheme: Bits, group size, scale search.
        damping: Times the mean diagonal, added to the diagonal.
        act_order: Take channels by falling energy.
    """
    factor = GptqFactor(hessian, damping=damping, act_order=act_order)
    scales = search_scales(weight, scheme, hessian.diagonal())
    return factor.quantize(weight, scales, scheme)


class GptqFactor:
    """The factored Hessian of one input, shared by the linears (and row strips) that read it.

    Args:
        hessian: float32 [K, K].
        damping: As in :func:`gptq`.
        act_order: As in :func:`gptq`.
    """

    def __init__(
        self, hessian: torch.Tensor, *, damping: float = 0.01, act_order: bool = True
    ) -> None:
        diagonal = hessian.diagonal()
        if act_order:
            order = torch.argsort(diagonal, descending=True, stable=True)
        else:
            order = torch.arange(diagonal.shape[0], device=hessian.device)
        self._order = order
        self._upper = inverse_cholesky(hessian[order][:, order], damping).float()

    def quantize(self, weight: torch.Tensor, scales: torch.Tensor, scheme: QuantScheme) -> Rounded:
        """Choose the codes of ``weight`` [N, K] under given ``scales`` [N, G], as stored.

        Work is laid out [K, N], so that a channel is one contiguous row.
        """
        low, high = CODE_RANGE[scheme.bits]
        rows, columns = weight.shape
        size = scheme.group_size or columns
        rest = weight.t()[self._order].contiguous()
        step = scales.t()[self._order // size].contiguous()
        codes = torch.empty_like(rest)
        for start in range(0, columns, BLOCK):
            stop = min(start + BLOCK, columns)
            errors = _round_block(
                rest[start:stop], step[start:stop], self._upper[start:stop, start:stop],
                (low, high), codes[start:stop],
            )  # fmt: skip
            rest[stop:].addmm_(self._upper[start:stop, stop:].t(), errors, alpha=-1.0)
        ordered = torch.empty((rows, columns), dtype=torch.int8, device=weight.device)
        ordered[:, self._order] = codes.t().to(torch.int8)
        return Rounded(ordered, scales)


def _round_block(
    block: torch.Tensor,
    step: torch.Tensor,
    spread: torch.Tensor,
    limits: tuple[int, int],
    codes: torch.Tensor,
) -> torch.Tensor:
    """Fill the ``codes`` [B, N] of a block of channels; return their errors, to be spread on."""
    if block.device.type != "cpu":
        return _round_block_torch(block, step, spread, limits, codes)
    from edgekit.quant import channel_kernels  # noqa: PLC0415 - Numba is slow to import

    errors = torch.empty_like(block)
    low, high = (np.float32(code) for code in limits)
    channel_kernels.round_channels(
        block.numpy(), step.numpy(), np.ascontiguousarray(spread.numpy()), low, high,
        channel_kernels.LANES, codes.numpy(), errors.numpy(),
    )  # fmt: skip
    return errors


def _round_block_torch(
    block: torch.Tensor,
    step: torch.Tensor,
    spread: torch.Tensor,
    limits: tuple[int, int],
    codes: torch.Tensor,
) -> torch.Tensor:
    """As :func:`_round_block`, on any device; ``block`` is used up."""
    low, high = limits
    errors = torch.empty_like(block)
    for k in range(block.shape[0]):
        code = (block[k] / step[k]).round_().clamp_(low, high)
        codes[k] = code
        errors[k] = (block[k] - code * step[k]) / spread[k, k]
        block[k + 1 :].addr_(spread[k, k + 1 :], errors[k], alpha=-1.0)
    return errors


def search_scales(
    weight: torch.Tensor,
    scheme: QuantScheme,
    importance: torch.Tensor | None = None,
    *,
    exponent: int = 0,
) -> torch.Tensor:
    """Return scales, float32 [N, G] as stored, of least squared error weighted by channel.

    Args:
        weight: float32 [N, K].
        scheme: ``absmax`` skips the search.
        importance: [K], mean square of each input channel; None weighs all alike.
        exponent: Scales are stored multiplied by ``2**exponent``.
    """
    low, high = CODE_RANGE[scheme.bits]
    rows, columns = weight.shape
    groups = weight.view(rows, scheme.groups(columns), -1)
    start = groups.abs().amax(-1) / high
    if scheme.scale_search == "absmax":
        return stored_scales(start, exponent)
    weights = torch.ones(columns, device=weight.device) if importance is None else importance
    # A dead group has no weighted error to compare; a floor makes it choose by plain error.
    weights = weights.float().clamp_min(1e-6 * float(weights.float().mean()) + 1e-30)
    weights = weights.view(1, groups.shape[1], -1)
    best = stored_scales(start, exponent)
    least = torch.full_like(start, float("inf"))
    for factor in SEARCH_FACTORS:
        trial = stored_scales(start * factor, exponent)
        for refinement in range(SEARCH_REFINEMENTS + 1):
            step = trial[..., None]
            codes = (groups / step).round_().clamp_(low, high)
            error = ((codes * step - groups).square_() * weights).sum(-1)
            better = error < least
            best = torch.where(better, trial, best)
            least = torch.where(better, error, least)
            if refinement < SEARCH_REFINEMENTS:
                trial = stored_scales(_fit_scales(codes, groups, weights, start), exponent)
    return best


def _fit_scales(
    codes: torch.Tensor, groups: torch.Tensor, weights: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    """Return the scales [N, G] of least weighted error for given codes [N, G, size].

    ``start`` stands in for those of groups that have no positive one.
    """
    power = (codes.square() * weights).sum(-1)
    match = (codes * groups * weights).sum(-1)
    return torch.where((power > 0) & (match > 0), match / power, start)


def round_to_nearest(weight: torch.Tensor, scales: torch.Tensor, scheme: QuantScheme) -> Rounded:
    """Round ``weight`` [N, K] under given ``scales`` [N, G], as stored."""
    low, high = CODE_RANGE[scheme.bits]
    groups = weight.view(*scales.shape, -1)
    codes = (groups / scales[..., None]).round_().clamp_(low, high)
    return Rounded(codes.view(weight.shape).to(torch.int8), scales)


def stored_scales(scales: torch.Tensor, exponent: int = 0) -> torch.Tensor:
    """Return scales as an engine reads them, float32: rounded to float16 where they are stored.

    Multiplied by a small power of two, scales fall among float16's subnormals and lose bits: codes
    have to be chosen for what is left of them.

    Args:
        scales: float32, any shape.
        exponent: They are stored multiplied by ``2**exponent``, never as 0.
    """
    stored = (scales * 2.0**exponent).clamp_min(SMALLEST_SCALE).half()
    return stored.float() * 2.0**-exponent
