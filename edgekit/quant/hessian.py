"""Second moments of a linear's inputs: what GPTQ, AWQ and scale fitting know of the data.

For inputs ``x`` of the quantized model and ``x_full`` of the full-precision one, over T tokens:

- ``hessian`` H = mean of x xᵀ, [K, K]: the squared output error of a weight change D is tr(D H Dᵀ);
- ``cross`` C = mean of x_full xᵀ, [K, K];
- ``drift`` R = mean of (residual_full - residual) xᵀ, [N, K], where the linear adds to a residual.

Sums are float32 per batch and added in float32; factorizations are float64. Needs torch
(extra ``calibrate``); import through :mod:`edgekit.quant.calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgekit.errors import CalibrationError

MAX_DAMPING = 1.0
"""A Hessian that is not positive definite with its mean diagonal added holds NaN or infinity."""


SYMMETRY_BLOCK = 256
"""Columns of the Hessian summed at a time, down to the diagonal; the rest is their mirror image."""


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Moments of one linear's inputs, divided by the number of tokens; see the module.

    Attributes:
        hessian: float32 [K, K].
        cross: float32 [K, K]; None when only the quantized model's inputs were seen.
        drift: float32 [N, K]; None when the linear adds to no residual.
    """

    hessian: torch.Tensor
    cross: torch.Tensor | None = None
    drift: torch.Tensor | None = None


class MomentAccumulator:
    """Adds up :class:`InputMoments` batch by batch.

    Args:
        in_features: K.
        device: Where the sums live.
        cross: Whether full-precision inputs will be given.
        out_features: N of a linear that adds to a residual; 0 for others.
    """

    def __init__(
        self, in_features: int, device: torch.device, *, cross: bool, out_features: int = 0
    ) -> None:
        square = (in_features, in_features)
        self._hessian = torch.zeros(square, device=device)
        self._cross = torch.zeros(square, device=device) if cross else None
        self._drift = (
            torch.zeros((out_features, in_features), device=device) if out_features else None
        )
        self._tokens = 0

    def add(
        self,
        x: torch.Tensor,
        x_full: torch.Tensor | None = None,
        residual_drift: torch.Tensor | None = None,
    ) -> None:
        """Add inputs ``x`` [..., K] and what belongs to the same tokens in the other streams."""
        flat = x.reshape(-1, x.shape[-1])
        for stop in range(SYMMETRY_BLOCK, flat.shape[1] + SYMMETRY_BLOCK, SYMMETRY_BLOCK):
            part = slice(stop - SYMMETRY_BLOCK, stop)
            self._hessian[:stop, part].addmm_(flat[:, :stop].t(), flat[:, part])
        if self._cross is not None and x_full is not None:
            self._cross.addmm_(x_full.reshape(flat.shape).t(), flat)
        if self._drift is not None and residual_drift is not None:
            self._drift.addmm_(residual_drift.reshape(flat.shape[0], -1).t(), flat)
        self._tokens += flat.shape[0]

    def result(self) -> InputMoments:
        """Return the means; the accumulator must not be used afterwards.

        Raises:
            CalibrationError: No token was added, or an activation was NaN or infinite.
        """
        if not self._tokens or not bool(torch.isfinite(self._hessian.diagonal()).all()):
            raise CalibrationError(
                "the calibration activations are empty, NaN or infinite",
                "Check the checkpoint's weights and the calibration text",
            )
        for start in range(0, self._hessian.shape[0], SYMMETRY_BLOCK):
            stop = start + SYMMETRY_BLOCK
            self._hessian[stop:, start:stop] = self._hessian[start:stop, stop:].t()
        for total in (self._hessian, self._cross, self._drift):
            if total is not None:
                total.div_(self._tokens)
        return InputMoments(self._hessian, self._cross, self._drift)


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the Hessian in float64 with ``damping`` times its mean diagonal added.

    A channel that is never active has a zero row; it gets the mean diagonal itself, so that its
    weight is kept by rounding and by no other channel's error.
    """
    result = hessian.to(torch.float64, copy=True)
    diagonal = result.diagonal()
    mean = diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)
    diagonal += torch.where(diagonal == 0, mean, damping * mean)
    return result


class OutputTarget:
    """The weight whose output on the quantized inputs is nearest the full model's.

    The minimum over V of ``mean |V x - (W x_full + r_full - r)|^2`` is
    ``V = W + (W (C - H) + R) H^-1``; quantizing V under H then minimizes the distance to the full
    model's output exactly, not to W's output on inputs that are already wrong (the aim of GPTAQ,
    arXiv 2504.02692, in closed form).

    Args:
        moments: Without ``cross`` the target is W itself.
        damping: Ridge, times the mean diagonal: pulls V to W where data say little.
    """

    def __init__(self, moments: InputMoments, damping: float) -> None:
        self._mix: torch.Tensor | None = None
        self._shift: torch.Tensor | None = None
        if moments.cross is None:
            return
        factor = cholesky(moments.hessian, damping)
        self._mix = _solve_right(moments.cross - moments.hessian, factor)
        if moments.drift is not None:
            self._shift = _solve_right(moments.drift, factor)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """Return V, float32 [N, K], of ``weight`` [N, K]."""
        if self._mix is None:
            return weight
        target = torch.addmm(weight, weight, self._mix)
        return target if self._shift is None else target + self._shift


def _solve_right(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return ``values H^-1``, float32, for the lower Cholesky factor of H."""
    solved: torch.Tensor = torch.cholesky_solve(values.t().double(), factor)
    result: torch.Tensor = solved.t().float()
    return result


def cholesky(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the lower Cholesky factor, float64 [K, K], of the damped Hessian.

    Rounding can leave the smallest eigenvalues of a rank-deficient Hessian below zero: damping is
    raised tenfold until it factors.

    Raises:
        CalibrationError: Not even at ``MAX_DAMPING``.
    """
    while True:
        factor: torch.Tensor
        factor, info = torch.linalg.cholesky_ex(damped(hessian, damping))
        if not int(info):
            return factor
        if damping >= MAX_DAMPING:
            raise CalibrationError(
                "the calibration Hessian is not positive definite",
                "Use more calibration text, or check it for constant input",
            )
        damping = min(max(damping, 1e-4) * 10, MAX_DAMPING)


def inverse_cholesky(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor, float64 [K, K], of the damped Hessian's inverse.

    Row k holds, from column k on, how GPTQ spreads the rounding error of channel k over the
    channels after it (arXiv 2210.17323, section 3.3).
    """
    inverse = torch.cholesky_inverse(cholesky(hessian, damping))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def output_error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return ``tr(D H D^T)`` for a weight change D [N, K], in float64."""
    return float(((change @ hessian) * change).sum(dtype=torch.float64))
