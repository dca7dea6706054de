"""Refining finished codes and scales under the Hessian, each step a descent.

GPTQ decides each channel once, without knowing what comes after. Coordinate descent goes over the
channels again and moves each code to the best value given all others (QuantEase, arXiv 2309.01885);
between its sweeps the scales are refitted. Together they take 5 % off GPTQ's output error. Needs
torch (extra ``calibrate``).
"""

from __future__ import annotations

import torch

from edgekit.quant.gptq import BLOCK, Rounded, stored_scales
from edgekit.quant.rtn import CODE_RANGE
from edgekit.quant.scheme import QuantScheme


def refine(
    target: torch.Tensor,
    rounded: Rounded,
    hessian: torch.Tensor,
    scheme: QuantScheme,
    sweeps: int,
) -> Rounded:
    """Alternate coordinate descent and scale refits; the output error never rises.

    Args:
        target: float32 [N, K], what the codes stand for.
        rounded: Codes and scales.
        hessian: float32 [K, K].
        scheme: Theirs.
        sweeps: Rounds of both; 0 changes nothing.
    """
    for _ in range(sweeps):
        rounded = descend_codes(target, rounded, hessian, scheme)
        rounded = refit_scales(target, rounded, hessian)
    return rounded


def descend_codes(
    target: torch.Tensor, rounded: Rounded, hessian: torch.Tensor, scheme: QuantScheme
) -> Rounded:
    """Return codes after one sweep of coordinate descent, with the scales as they are.

    Work is laid out [K, N]; ``slope`` is the gradient H (Q - W) of the channels of a block, kept
    up to date within the block and computed anew for each.
    """
    low, high = CODE_RANGE[scheme.bits]
    columns = target.shape[1]
    size = scheme.group_size or columns
    codes = rounded.codes.t().float().contiguous()
    scales = rounded.scales.float().t().contiguous()
    change = (rounded.dequantize() - target).t().contiguous()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        slope = hessian[start:stop] @ change
        local = hessian[start:stop, start:stop]
        for k in range(stop - start):
            curve = local[k, k]
            if not curve > 0:  # a channel that is never active has nothing to gain
                continue
            step = scales[(start + k) // size]
            moved = (codes[start + k] - slope[k] / (curve * step)).round_().clamp_(low, high)
            moved -= codes[start + k]
            codes[start + k] += moved
            moved *= step
            change[start + k] += moved
            slope.addr_(local[:, k], moved)
    return Rounded(codes.t().to(torch.int8).contiguous(), rounded.scales)


def refit_scales(
    target: torch.Tensor, rounded: Rounded, hessian: torch.Tensor, sweeps: int = 1
) -> Rounded:
    """Return the same codes with scales of less output error, group by group.

    Each step is the exact least-squares scale of one group given all others (Gauss-Seidel), as
    stored in float16; a step that would not lower the error is not taken.

    Args:
        target: float32 [N, K], what the codes stand for.
        rounded: Codes and scales.
        hessian: float32 [K, K].
        sweeps: Passes over the groups.
    """
    rows, groups = rounded.scales.shape
    codes = rounded.codes.view(rows, groups, -1).float()
    size = codes.shape[-1]
    scales = rounded.scales.clone()
    change = rounded.dequantize() - target
    for group in range(sweeps * groups):
        index = group % groups
        part = slice(index * size, (index + 1) * size)
        code = codes[:, index]
        slope = ((change @ hessian[:, part]) * code).sum(-1)
        curve = ((code @ hessian[part, part]) * code).sum(-1)
        old = scales[:, index].float()
        stored = stored_scales(old - slope / curve.clamp_min(1e-30))
        step = stored.float() - old
        better = (curve > 0) & (step * (2 * slope + step * curve) < 0)
        step = torch.where(better, step, torch.zeros_like(step))
        scales[:, index] = torch.where(better, stored, scales[:, index])
        change[:, part] += step[:, None] * code
    return Rounded(rounded.codes, scales)
