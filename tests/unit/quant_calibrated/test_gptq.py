"""GPTQ, its Hessian and its scale search against naive references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CalibrationError
from edgekit.quant import gptq as gptq_module
from edgekit.quant import refine as refine_module
from edgekit.quant.gptq import GptqFactor, gptq, round_to_nearest, search_scales, stored_scales
from edgekit.quant.hessian import (
    InputMoments,
    MomentAccumulator,
    OutputTarget,
    damped,
    inverse_cholesky,
    output_error,
)
from edgekit.quant.packing import SMALLEST_SCALE
from edgekit.quant.refine import descend_codes, refine, refit_scales
from edgekit.quant.scheme import QuantScheme

SCHEME = QuantScheme(4, 32, "mse", "gptq")


def problem(seed: int, rows: int = 24, columns: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight [N, K] and the Hessian of correlated inputs of unequal energy."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=rng) / columns**0.5
    energy = torch.exp(torch.randn(columns, generator=rng))
    inputs = torch.randn(400, columns, generator=rng) @ mix * energy
    return torch.randn(rows, columns, generator=rng) * 0.05, inputs.t() @ inputs / 400


def naive_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, order: list[int]
) -> torch.Tensor:
    """Quantize channel by channel, re-solving for the channels left each time, in float64."""
    rest, matrix = weight.double().clone(), damped(hessian, 0.01)
    step = scales.double().repeat_interleave(SCHEME.group_size, 1)
    codes = torch.empty_like(rest)
    left = list(order)
    while left:
        k = left[0]
        inverse = torch.linalg.inv(matrix[left][:, left])
        codes[:, k] = (rest[:, k] / step[:, k]).round().clamp(-8, 7)
        error = (rest[:, k] - codes[:, k] * step[:, k]) / inverse[0, 0]
        rest[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return codes.to(torch.int8)


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.booleans())
def test_codes_equal_the_naive_algorithm(seed: int, act_order: bool) -> None:  # noqa: FBT001
    """Blocks and Cholesky factors give the codes of optimal brain quantization, step by step."""
    weight, hessian = problem(seed)
    scales = search_scales(weight, SCHEME, hessian.diagonal())
    got = gptq(weight, hessian, SCHEME, act_order=act_order)
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else range(64)
    want = naive_gptq(weight, hessian, scales, [int(k) for k in order])
    assert torch.equal(got.scales, scales)
    # A value within float32 rounding of a tie may fall either way, and then moves what follows.
    assert (got.codes != want).float().mean() < 0.02


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_output_error_is_below_rounding(seed: int) -> None:
    """GPTQ's output error is below round-to-nearest's at the very same scales."""
    weight, hessian = problem(seed)
    rounded = gptq(weight, hessian, SCHEME)
    nearest = round_to_nearest(weight, rounded.scales, SCHEME)
    gptq_error = output_error(rounded.dequantize() - weight, hessian)
    assert gptq_error < output_error(nearest.dequantize() - weight, hessian)


def test_diagonal_hessian_is_rounding_in_any_order() -> None:
    """Uncorrelated channels cannot help each other: act-order, plain and rounding agree."""
    weight, hessian = problem(3)
    diagonal = torch.diag(hessian.diagonal())
    scales = search_scales(weight, SCHEME, hessian.diagonal())
    ordered = GptqFactor(diagonal, act_order=True).quantize(weight, scales, SCHEME)
    plain = GptqFactor(diagonal, act_order=False).quantize(weight, scales, SCHEME)
    nearest = round_to_nearest(weight, scales, SCHEME)
    assert torch.equal(ordered.codes, plain.codes)
    assert torch.equal(plain.codes, nearest.codes)


@pytest.mark.parametrize("scheme", [SCHEME, QuantScheme(8, 0, "mse", "gptq")])
def test_codes_fit_their_bits(scheme: QuantScheme) -> None:
    """Codes stay in range and scales are positive float16, also where weights are huge or zero."""
    weight, hessian = problem(5)
    weight[0] = 0
    weight[1] *= 1000
    rounded = gptq(weight, hessian, scheme)
    low, high = (-8, 7) if scheme.bits == 4 else (-127, 127)
    assert rounded.codes.dtype == torch.int8
    assert low <= int(rounded.codes.min()) <= int(rounded.codes.max()) <= high
    assert torch.equal(rounded.scales, stored_scales(rounded.scales))
    assert float(rounded.scales.min()) >= SMALLEST_SCALE
    assert rounded.scales.shape == (24, scheme.groups(64))


def test_searched_scales_are_no_worse_than_absmax() -> None:
    """Every group's weighted error under its searched scale is at most absmax's."""
    weight, hessian = problem(7)
    importance = hessian.diagonal()

    def errors(search: Any) -> torch.Tensor:
        scheme = QuantScheme(4, 32, search, "gptq")
        rounded = round_to_nearest(weight, search_scales(weight, scheme, importance), scheme)
        change = (rounded.dequantize() - weight).square() * importance
        return change.view(24, 2, 32).sum(-1)

    assert (errors("mse") <= errors("absmax") * (1 + 1e-5)).all()
    assert errors("mse").sum() < 0.95 * errors("absmax").sum()


def test_dead_channels_are_rounded_alone() -> None:
    """A channel that is always zero neither breaks the factorization nor loses its weight."""
    weight, hessian = problem(11)
    hessian[5] = hessian[:, 5] = 0
    rounded = gptq(weight, hessian, SCHEME)
    step = rounded.scales[:, 0]
    inside = weight[:, 5].abs() < 7 * step
    assert inside.any()
    error = (rounded.dequantize() - weight)[:, 5].abs()
    assert (error[inside] <= 0.5001 * step[inside]).all()


def test_rank_deficient_hessian_factors() -> None:
    """Fewer tokens than channels still give a factor: damping makes up the rest."""
    inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    upper = inverse_cholesky(inputs.t() @ inputs / 4, 0.0)
    assert torch.isfinite(upper).all()


def test_bad_activations_are_refused() -> None:
    """NaN activations end the run instead of making codes of nothing."""
    total = MomentAccumulator(4, torch.device("cpu"), cross=False)
    total.add(torch.full((3, 4), float("nan")))
    with pytest.raises(CalibrationError, match="NaN"):
        total.result()


def test_output_target_is_the_least_squares_weight() -> None:
    """The closed form equals a direct least-squares fit of the full model's output."""
    rng = torch.Generator().manual_seed(1)
    full = torch.randn(500, 16, generator=rng)
    seen = full + 0.3 * torch.randn(500, 16, generator=rng)
    drift = 0.1 * torch.randn(500, 8, generator=rng)
    weight = torch.randn(8, 16, generator=rng)
    total = MomentAccumulator(16, torch.device("cpu"), cross=True, out_features=8)
    for part in (slice(0, 200), slice(200, 500)):
        total.add(seen[part], full[part], drift[part])
    target = OutputTarget(total.result(), damping=0.0)(weight)
    want = torch.linalg.lstsq(seen, full @ weight.t() + drift).solution.t()
    torch.testing.assert_close(target, want, rtol=1e-3, atol=1e-4)


def test_output_target_without_cross_is_the_weight() -> None:
    """Where only quantized inputs were seen the target is the weight itself."""
    weight, hessian = problem(2)
    assert OutputTarget(InputMoments(hessian), 0.01)(weight) is weight


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([SCHEME, QuantScheme(8, 0, "mse", "gptq")]))
def test_refinement_only_descends(seed: int, scheme: QuantScheme) -> None:
    """Each sweep of codes and each refit of scales lowers the output error, or keeps it."""
    weight, hessian = problem(seed)
    rounded = gptq(weight, hessian, scheme)
    error = output_error(rounded.dequantize() - weight, hessian)
    for step in (descend_codes(weight, rounded, hessian, scheme), None):
        rounded = step or refit_scales(weight, rounded, hessian)
        after = output_error(rounded.dequantize() - weight, hessian)
        assert after <= error * (1 + 1e-5)
        error = after
    assert int(rounded.codes.abs().max()) <= (8 if scheme.bits == 4 else 127)


def test_refinement_pays() -> None:
    """Three rounds take several percent off GPTQ's error, and end where no single code helps."""
    weight, hessian = problem(1)
    rounded = gptq(weight, hessian, SCHEME)
    before = output_error(rounded.dequantize() - weight, hessian)
    refined = refine(weight, rounded, hessian, SCHEME, sweeps=3)
    assert output_error(refined.dequantize() - weight, hessian) < 0.97 * before
    settled = refine(weight, refined, hessian, SCHEME, sweeps=30)
    best = output_error(settled.dequantize() - weight, hessian)
    step = settled.scales.repeat_interleave(32, 1)
    for row, column, sign in ((0, 0, 1), (3, 17, -1), (20, 63, 1)):
        change = settled.dequantize() - weight
        change[row, column] += sign * step[row, column]
        assert output_error(change, hessian) >= best * (1 - 1e-6)


@pytest.mark.parametrize("rows", [24, 64, 150])
@pytest.mark.parametrize("scheme", [SCHEME, QuantScheme(8, 0, "mse", "gptq")])
def test_kernels_choose_the_codes_of_the_torch_loops(
    rows: int, scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of output channels on the CPU give what the loops that run on a GPU give."""
    weight, hessian = problem(2, rows, 192)
    hessian[7] = hessian[:, 7] = 0
    rounded = gptq(weight, hessian, scheme)
    moved = descend_codes(weight, rounded, hessian, scheme)
    monkeypatch.setattr(gptq_module, "_round_block", gptq_module._round_block_torch)
    monkeypatch.setattr(refine_module, "_descend_block", refine_module._descend_block_torch)
    looped = gptq(weight, hessian, scheme)
    assert (looped.codes != rounded.codes).float().mean() < 0.002
    looped = descend_codes(weight, rounded, hessian, scheme)
    assert (looped.codes != moved.codes).float().mean() < 0.002
    assert (moved.codes != rounded.codes).any()


def test_a_wide_hessian_is_symmetric() -> None:
    """Only half of it is summed; the other half is its mirror image."""
    inputs = torch.randn(40, 700, generator=torch.Generator().manual_seed(0))
    total = MomentAccumulator(700, torch.device("cpu"), cross=False)
    total.add(inputs)
    hessian = total.result().hessian
    assert torch.equal(hessian, hessian.t())
    torch.testing.assert_close(hessian, inputs.t() @ inputs / 40)


def test_tiny_groups_get_scales_as_small_as_are_stored() -> None:
    """The smallest scale is that of every algorithm: weights of 1e-6 are not rounded to zero."""
    scales = stored_scales(torch.tensor([0.0, 1e-6, 1.0]))
    assert scales[0] == SMALLEST_SCALE
    assert float(scales[1]) == pytest.approx(1e-6, rel=0.05)


@pytest.mark.parametrize("exponent", [-7, 0, 5])
def test_every_step_chooses_scales_that_can_be_stored(exponent: int) -> None:
    """From search to refit scales are float16 times the power of two, subnormal ones included."""
    weight, hessian = problem(4)
    weight *= 0.1
    scales = search_scales(weight, SCHEME, hessian.diagonal(), exponent=exponent)
    rounded = GptqFactor(hessian).quantize(weight, scales, SCHEME)
    refined = refine(weight, rounded, hessian, SCHEME, 2, exponent=exponent)
    assert not torch.equal(refined.scales, scales)
    for found in (scales, refined.scales):
        shifted = found * 2.0**exponent
        assert torch.equal(shifted, shifted.half().float())
        assert (shifted < torch.finfo(torch.float16).tiny).any() == (exponent < 0)


def test_an_exponent_that_costs_no_bits_changes_nothing() -> None:
    """Scales that stay normal float16 are the same under any exponent, and so are the codes."""
    weight, hessian = problem(4)
    plain = refine(weight, gptq(weight, hessian, SCHEME), hessian, SCHEME, 2)
    scales = search_scales(weight, SCHEME, hessian.diagonal(), exponent=-6)
    moved = GptqFactor(hessian).quantize(weight, scales, SCHEME)
    moved = refine(weight, moved, hessian, SCHEME, 2, exponent=-6)
    assert torch.equal(moved.scales, plain.scales)
    assert torch.equal(moved.codes, plain.codes)
