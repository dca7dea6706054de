"""Refining codes and scales where the errors of output channels add up to one effect.

An error D of a linear's weight costs ``tr(G D H Dᵀ)``: H is the second moment of its inputs, G that
of the divergence's gradients at its outputs (:mod:`edgekit.quant.guidance`; the two-sided measure
of YAQA, arXiv 2505.22988). GPTQ lets the input channels of one row make up for each other's
rounding; with G the rows do, too: what is left points where the model does not look. Coordinate
descent as in :mod:`edgekit.quant.refine`, on blocks of output channels. Needs torch (extra
``calibrate``).
"""

from __future__ import annotations

import numpy as np
import torch

from edgekit.quant.gptq import BLOCK, Rounded, stored_scales
from edgekit.quant.rtn import CODE_RANGE
from edgekit.quant.scheme import QuantScheme

OUTPUT_DAMPING = 0.1
"""Added to G's diagonal, times its mean: holds back errors where calibration saw no effect."""


def refine_coupled(
    target: torch.Tensor,
    rounded: Rounded,
    hessian: torch.Tensor,
    gradients: torch.Tensor,
    scheme: QuantScheme,
    sweeps: int,
    *,
    exponent: int = 0,
) -> Rounded:
    """Alternate coordinate descent and scale refits under ``tr(G D H Dᵀ)``; it never rises.

    Args:
        target: float32 [N, K], what the codes stand for.
        rounded: Codes and scales.
        hessian: float32 [K, K].
        gradients: float32 [N, B], row n of G for the B output channels of its block; blocks are of
            B rows, the last one of what is left.
        scheme: Theirs.
        sweeps: Rounds of both; 0 changes nothing.
        exponent: Scales are stored multiplied by ``2**exponent``.
    """
    parts = []
    rows, size = gradients.shape
    for start in range(0, rows, size):
        block = slice(start, min(start + size, rows))
        coupling = _damped(gradients[block, : block.stop - start])
        part = Rounded(rounded.codes[block], rounded.scales[block])
        for _ in range(sweeps):
            part = descend_codes(target[block], part, hessian, coupling, scheme)
            part = refit_scales(target[block], part, hessian, coupling, exponent=exponent)
        parts.append(part)
    codes, scales = (torch.cat([getattr(p, x) for p in parts]) for x in ("codes", "scales"))
    return Rounded(codes, scales)


def _damped(coupling: torch.Tensor) -> torch.Tensor:
    """Return a block of G, 1 in the mean of its diagonal, damped; the identity where G is 0."""
    mean = coupling.diagonal().mean()
    scaled = coupling / mean if float(mean) > 0 else torch.zeros_like(coupling)
    damping = OUTPUT_DAMPING if float(mean) > 0 else 1.0
    return (scaled + damping * torch.eye(len(coupling), device=coupling.device)).contiguous()


def descend_codes(
    target: torch.Tensor,
    rounded: Rounded,
    hessian: torch.Tensor,
    coupling: torch.Tensor,
    scheme: QuantScheme,
) -> Rounded:
    """Return codes after one sweep of coordinate descent, with the scales as they are.

    Products are made on the weight's device; codes are decided on the CPU, one after the other.

    Args:
        target: float32 [N, K].
        rounded: Codes and scales.
        hessian: float32 [K, K].
        coupling: float32 [N, N], positive definite.
        scheme: Theirs.
    """
    from edgekit.quant import channel_kernels  # noqa: PLC0415 - Numba is slow to import

    columns = target.shape[1]
    size = scheme.group_size or columns
    low, high = (np.float32(code) for code in CODE_RANGE[scheme.bits])
    codes = rounded.codes.t().float().contiguous()
    steps = rounded.scales.t()[torch.arange(columns, device=target.device) // size]
    change = (rounded.dequantize() - target).t().contiguous()
    held = coupling.cpu().numpy()
    for start in range(0, columns, BLOCK):
        part = slice(start, min(start + BLOCK, columns))
        slope = (hessian[part] @ change @ coupling).cpu().numpy()
        local = np.ascontiguousarray(hessian[part, part].cpu().numpy())
        own, moved = codes[part].cpu(), change[part].cpu()
        channel_kernels.descend_coupled(
            slope, local, held, steps[part].cpu().numpy(), low, high, own.numpy(), moved.numpy()
        )
        codes[part], change[part] = own, moved
    return Rounded(codes.t().to(torch.int8).contiguous(), rounded.scales)


def refit_scales(
    target: torch.Tensor,
    rounded: Rounded,
    hessian: torch.Tensor,
    coupling: torch.Tensor,
    *,
    exponent: int = 0,
) -> Rounded:
    """Return the same codes with scales of less error, group by group.

    Each step solves for one group's scales of all rows together, given the other groups, as stored
    in float16; a step that would not lower the error is not taken.

    Args:
        target: float32 [N, K].
        rounded: Codes and scales.
        hessian: float32 [K, K].
        coupling: float32 [N, N], positive definite.
        exponent: Scales are stored multiplied by ``2**exponent``.
    """
    rows, groups = rounded.scales.shape
    codes = rounded.codes.view(rows, groups, -1).float()
    size = codes.shape[-1]
    scales = rounded.scales.clone()
    change = rounded.dequantize() - target
    for index in range(groups):
        part, code = slice(index * size, (index + 1) * size), codes[:, index]
        slope = ((coupling @ (change @ hessian[:, part])) * code).sum(-1).double()
        curve = ((code @ hessian[part, part] @ code.t()) * coupling).double()
        ridge = 1e-3 * curve.diagonal().mean() + torch.finfo(torch.float32).tiny
        ridged = curve + ridge * torch.eye(rows, dtype=curve.dtype, device=curve.device)
        wanted = scales[:, index] - torch.linalg.solve(ridged, slope).float()
        stored = stored_scales(wanted, exponent)
        step = stored - scales[:, index]
        exact = step.double()
        if float(exact @ slope + exact @ curve @ exact / 2) < 0:
            scales[:, index] = stored
            change[:, part] += step[:, None] * code
    return Rounded(rounded.codes, scales)
