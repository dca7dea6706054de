"""Calibrated quantization of a whole model: what to call, and what comes back.

This module is cheap to import; torch is loaded by the functions that need it.

The model is quantized layer by layer, in execution order, on the hidden states the already
quantized layers produce. Memory is bounded by one decoder layer in float32, twice (full and
quantized), its largest input moments and their factorization, the calibration tokens' hidden
states, twice, and up to a gibibyte of the inputs that would else be computed twice; the LM head is
worked on in strips of rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import Float32Array, LazyTensor
from edgekit.errors import MissingExtraError
from edgekit.models.config import ModelConfig
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.plan import Schemes
from edgekit.quant.tensor import WeightError

if TYPE_CHECKING:
    from edgekit.quant.guidance import Guidance

TensorSource = Callable[[str], LazyTensor]
CalibratedAlgorithm = Literal["gptq", "awq", "awq-gptq"]


class EmitLinear(Protocol):
    """Takes each finished linear, in execution order, the LM head last."""

    def __call__(
        self,
        name: str,
        codes: npt.NDArray[np.int8],
        scales: Float32Array,
        error: WeightError,
    ) -> None:
        """Store codes [N, K] and scales [N, G]; ``error`` is the distance from the checkpoint's.

        Scales are those an engine reads, before they are multiplied by the linear's power of two;
        then float16 holds them exactly.
        """


class StreamKeeper(Protocol):
    """Keeps the residual streams between layers, so that an interrupted run can go on."""

    def load(self) -> tuple[int, list[Float32Array]] | None:
        """Return how many layers are done and the streams after them; None to begin anew.

        What was emitted for these layers is not emitted again.
        """

    def keep(self, layers: int, streams: Sequence[Float32Array]) -> None:
        """Keep the streams [n, S, hidden] after ``layers`` layers, in place of any before."""


class EmitDense(Protocol):
    """Takes norm weights and biases that calibration changed."""

    def __call__(self, name: str, values: Float32Array) -> None:
        """Store checkpoint tensor ``name`` as ``values`` instead of the original."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        algorithm: ``gptq`` (arXiv 2210.17323), ``awq`` (arXiv 2306.00978: channel scales folded
            into what comes before, then rounding to nearest), or both in that order.
        match_output: Aim at the full-precision model's outputs, so that each layer also corrects
            the error of those before it; off, at the weight's own outputs. Costs a second pass
            of every layer; ``gptq`` only.
        damping: Added to GPTQ's Hessian's diagonal, times its mean.
        match_damping: The same for the fit of the outputs to match, where it keeps weights near
            their own values.
        refine_sweeps: Rounds of coordinate descent and scale refits after GPTQ
            (:mod:`edgekit.quant.refine`).
        act_order: Take channels by falling energy (the stored order does not change).
        batch_tokens: Tokens in a forward pass at a time, whole windows, one at least; bounds
            activation memory.
        device: ``cpu`` or a CUDA device (``cuda``, ``cuda:1``).
        threads: CPU threads. The same codes come out only for the same number, machine and
            device.
    """

    algorithm: CalibratedAlgorithm = "gptq"
    match_output: bool = True
    damping: float = 0.01
    match_damping: float = 0.3
    refine_sweeps: int = 8
    act_order: bool = True
    batch_tokens: int = 4096
    device: str = "cpu"
    threads: int = 2

    @property
    def matches_output(self) -> bool:
        """Whether the full-precision stream is carried beside the quantized one."""
        return self.match_output and self.algorithm != "awq"

    @property
    def is_guided(self) -> bool:
        """Whether guidance is measured; it was not tried with AWQ's channel scales."""
        return self.algorithm == "gptq"

    def batch_of(self, window: int) -> int:
        """Return how many windows of ``window`` tokens go through a layer at a time."""
        return max(1, self.batch_tokens // window)


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was done.

    Attributes:
        algorithm: As asked.
        tokens: Calibration tokens used.
        digest: Of the calibration set.
        output_error: Linear to relative squared output error on the calibration inputs,
            ``|W' x - W x|^2 / |W x|^2`` in the mean over tokens, W being the checkpoint's weight.
    """

    algorithm: CalibratedAlgorithm
    tokens: int
    digest: str
    output_error: dict[str, float] = field(default_factory=dict)


def require_torch(feature: str) -> Any:
    """Import and return torch.

    Raises:
        MissingExtraError: It is not installed.
    """
    # OpenMP reads this when torch loads it. GPTQ makes a million small calls: threads that spin
    # between them cost five times the run when anything else wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError(feature, "calibrate") from error
    return torch


def calibrate_model(
    tensors: TensorSource,
    config: ModelConfig,
    plan: Schemes,
    calibration: CalibrationSet,
    *,
    emit: EmitLinear,
    emit_dense: EmitDense,
    keeper: StreamKeeper | None = None,
    options: CalibrationOptions | None = None,
    exponents: Mapping[str, int] | None = None,
    guidance: Guidance | None = None,
    progress: Progress = SILENT,
) -> CalibrationReport:
    """Quantize every linear the plan quantizes, on calibration data.

    Args:
        tensors: Opens a checkpoint tensor by name.
        config: The architecture.
        plan: Scheme of every linear; those with None stay dense and are not emitted.
        calibration: Token windows.
        emit: Called with each finished linear.
        emit_dense: Called with each norm weight or bias that changed.
        keeper: Told of the streams after each layer, and asked for them at the start.
        options: How.
        exponents: Scales of a linear are stored multiplied by 2 to the power of this; 0 for those
            that are not named.
        guidance: Which errors of a linear's outputs matter
            (:func:`edgekit.quant.guidance.measure_guidance`); all alike for those not named.
        progress: Told of the stored bytes of each finished linear, and of what is being done.

    Raises:
        MissingExtraError: torch is not installed.
        CalibrationError: Activations are NaN or infinite, or a token id is out of range.
        QuantizationError: The device does not exist, or a scale overflows float16.
    """
    require_torch("Calibrated quantization")
    from edgekit.quant.layerwise import LayerwiseCalibrator  # noqa: PLC0415 - needs torch

    settings, shifts = options or CalibrationOptions(), exponents or {}
    run = LayerwiseCalibrator(
        tensors, config, plan, calibration, settings, shifts, guidance or {}, progress
    )
    return run.run(emit, emit_dense, keeper)


def stream_bytes(
    config: ModelConfig, calibration: CalibrationSet, options: CalibrationOptions
) -> int:
    """Return the bytes of the residual streams that a keeper is given at a time."""
    streams = 2 if options.matches_output else 1
    return streams * 4 * calibration.windows.size * config.hidden_size
