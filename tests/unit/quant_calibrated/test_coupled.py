"""Coupled refinement: a descent under tr(G D H Dᵀ), block by block of output channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.quant.coupled import descend_codes, refine_coupled, refit_scales
from edgekit.quant.gptq import GptqFactor, Rounded, search_scales
from edgekit.quant.refine import refine
from edgekit.quant.scheme import QuantScheme

SCHEME = QuantScheme(4, 32)
ROWS, COLUMNS = 24, 192  # two blocks of the kernel


def moment(seed: int, size: int) -> torch.Tensor:
    """Return a second moment of few strong directions."""
    rng = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size, generator=rng) * torch.logspace(0, -2, size)
    return factor @ factor.t() / size + 1e-3 * torch.eye(size)


def problem() -> tuple[torch.Tensor, Rounded, torch.Tensor, torch.Tensor]:
    """Return a weight, what GPTQ makes of it, and the moments of inputs and gradients."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    hessian = moment(1, COLUMNS)
    scales = search_scales(weight, SCHEME, hessian.diagonal())
    rounded = GptqFactor(hessian).quantize(weight, scales, SCHEME)
    return weight, rounded, hessian, moment(2, ROWS)


def cost(
    weight: torch.Tensor, rounded: Rounded, hessian: torch.Tensor, coupling: torch.Tensor
) -> float:
    change = (rounded.dequantize() - weight).double()
    return float(((coupling.double() @ change @ hessian.double()) * change).sum())


def test_no_single_code_would_lower_the_cost_after_descent() -> None:
    """After some sweeps no step of one code is better: the slopes are those of the cost."""
    weight, rounded, hessian, coupling = problem()
    for _ in range(30):
        rounded = descend_codes(weight, rounded, hessian, coupling, SCHEME)
    least = cost(weight, rounded, hessian, coupling)
    for row, column in ((0, 0), (5, 40), (23, 191), (11, 130)):
        for step in (-1, 1):
            codes = rounded.codes.clone()
            codes[row, column] = (codes[row, column] + step).clamp(-8, 7)
            moved = cost(weight, Rounded(codes, rounded.scales), hessian, coupling)
            assert moved >= least * (1 - 1e-6)


def test_every_step_is_a_descent() -> None:
    """Neither codes nor scales ever raise the cost; scales stay float16."""
    weight, rounded, hessian, coupling = problem()
    costs = [cost(weight, rounded, hessian, coupling)]
    for _ in range(3):
        rounded = descend_codes(weight, rounded, hessian, coupling, SCHEME)
        costs.append(cost(weight, rounded, hessian, coupling))
        rounded = refit_scales(weight, rounded, hessian, coupling)
        costs.append(cost(weight, rounded, hessian, coupling))
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < costs[1] < 0.8 * costs[0]
    assert torch.equal(rounded.scales, rounded.scales.half().float())


def test_rows_that_meet_make_up_for_each_other() -> None:
    """Under a coupling far from the identity the cost falls well below that of rows alone."""
    weight, rounded, hessian, coupling = problem()
    alone = refine(weight, rounded, hessian, SCHEME, 8)
    together = refine_coupled(weight, rounded, hessian, coupling, SCHEME, 8)
    assert cost(weight, together, hessian, coupling) < 0.7 * cost(weight, alone, hessian, coupling)


def test_uncoupled_rows_descend_as_alone() -> None:
    """With G the identity the codes are those of the descent row by row."""
    weight, rounded, hessian, _ = problem()
    alone = refine(weight, rounded, hessian, SCHEME, 1)
    together = descend_codes(weight, rounded, hessian, torch.eye(ROWS), SCHEME)
    assert (alone.codes != together.codes).float().mean() < 0.002


def test_blocks_are_refined_each_by_itself() -> None:
    """Rows of a block do not see other blocks; a shorter last block is one like the others."""
    weight, rounded, hessian, coupling = problem()
    size = 10
    packed = torch.zeros(ROWS, size)
    for start in range(0, ROWS, size):
        part = slice(start, min(start + size, ROWS))
        packed[part, : part.stop - start] = coupling[part, part]
    whole = refine_coupled(weight, rounded, hessian, packed, SCHEME, 2)
    for start in range(0, ROWS, size):
        part = slice(start, min(start + size, ROWS))
        own = Rounded(rounded.codes[part], rounded.scales[part])
        alone = refine_coupled(
            weight[part], own, hessian, coupling[part, part].contiguous(), SCHEME, 2
        )
        assert torch.equal(whole.codes[part], alone.codes)
        assert torch.equal(whole.scales[part], alone.scales)


@pytest.mark.parametrize("scheme", [SCHEME, QuantScheme(8, 0)])
def test_gradients_of_nothing_couple_nothing(scheme: QuantScheme) -> None:
    """Where no gradient was seen, rows are refined alone: no NaN, codes in range."""
    weight, _, hessian, _ = problem()
    scales = search_scales(weight, scheme, hessian.diagonal())
    rounded = GptqFactor(hessian).quantize(weight, scales, scheme)
    found = refine_coupled(weight, rounded, hessian, torch.zeros(ROWS, ROWS), scheme, 2)
    assert torch.isfinite(found.scales).all()
    assert cost(weight, found, hessian, torch.eye(ROWS)) <= cost(
        weight, rounded, hessian, torch.eye(ROWS)
    )


def test_a_dead_channel_stays_and_scales_keep_their_exponent() -> None:
    """An input channel without energy keeps its codes; scales are float16 times the power."""
    weight, _, hessian, coupling = problem()
    hessian[7], hessian[:, 7] = 0, 0
    scales = search_scales(weight, SCHEME, hessian.diagonal(), exponent=-12)
    rounded = GptqFactor(hessian).quantize(weight, scales, SCHEME)
    found = refine_coupled(weight, rounded, hessian, coupling, SCHEME, 2, exponent=-12)
    assert torch.equal(found.codes[:, 7], rounded.codes[:, 7])
    shifted = np.ldexp(found.scales.numpy(), -12)
    np.testing.assert_array_equal(shifted.astype(np.float16).astype(np.float32), shifted)
