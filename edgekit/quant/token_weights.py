"""How much each calibration token counts for each linear: where its output moves the model's.

Minimizing the squared error of a linear's outputs takes all tokens for equal; the divergence of the
model does not: to second order an error e of a linear's output costs ``(g · e)**2 / 2``, where g is
a random probe of the softmax's Fisher information sent back to that output
(:mod:`edgekit.quant.probes`). The weight of a token is the root mean square of its g over the
linear's output channels, in proportion to the mean over tokens. The square itself is the measure in
theory (GuidedQuant, arXiv 2505.07004); one probe is a noisy measure of it, and its root lets no few
tokens decide alone (docs/benchmarks.md).

The tokens go through the full-precision model in chunks, so many windows at a time that the
residual streams before all layers of a chunk are no larger than the two that calibration carries:
memory does not grow with the depth, each token passes every layer forwards twice and back once, and
weights are read twice a chunk. :func:`measure_token_weights` needs torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.checkpoint.lazy import Float32Array
from edgekit.models.config import ModelConfig, all_linears
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibrate import CalibrationOptions, TensorSource, require_torch
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.sensitivity import probe_bytes

PROBES = 1
"""Random probes of every token: the mean over a linear's output channels is one already."""

TokenWeights = Mapping[str, Float32Array]
"""Linear to the weight of each token, [n, S], 1 in the mean."""


def measure_token_weights(
    tensors: TensorSource,
    config: ModelConfig,
    calibration: CalibrationSet,
    *,
    options: CalibrationOptions | None = None,
    progress: Progress = SILENT,
) -> dict[str, Float32Array]:
    """Return the weight of each token for each linear, [n, S], 1 in the mean.

    Progress advances by :func:`token_weight_bytes`.

    Raises:
        MissingExtraError: torch is not installed.
        CalibrationError: A token id is out of range.
        QuantizationError: The device does not exist.
    """
    torch = require_torch("Calibrated quantization")
    from edgekit.quant.layer_reader import LayerReader  # noqa: PLC0415 - needs torch
    from edgekit.quant.output_gradients import output_gradients  # noqa: PLC0415 - needs torch
    from edgekit.quant.torch_run import repeatable  # noqa: PLC0415 - needs torch

    settings = options or CalibrationOptions()
    squares: dict[str, Float32Array] = {
        linear.name: np.empty(calibration.windows.shape, np.float32)
        for linear in all_linears(config)
    }
    with torch.no_grad(), repeatable(settings.threads):
        for part in _chunks(config, calibration):
            chunk = CalibrationSet(calibration.windows[part], calibration.digest, 0)
            reader = LayerReader(tensors, config, chunk, settings.device, progress)
            for name, square in output_gradients(reader, PROBES):
                squares[name][part] = square.cpu().numpy()
    return {name: token_weights(square) for name, square in squares.items()}


def token_weights(squares: Float32Array) -> Float32Array:
    """Return root mean squares of gradients in proportion to their mean, all 1 if it is 0.

    Args:
        squares: Mean squared gradient of each token, [n, S].
    """
    roots = np.sqrt(squares)
    mean = roots.mean(dtype=np.float64)
    if not mean > 0:
        return np.ones_like(squares)
    weights: Float32Array = (roots / mean).astype(np.float32)
    return weights


def token_weight_bytes(
    tensors: TensorSource, config: ModelConfig, calibration: CalibrationSet
) -> int:
    """Return the stored bytes that pass: a tensor's count once for each pass through it."""
    return len(_chunks(config, calibration)) * probe_bytes(tensors, config, PROBES)


def _chunks(config: ModelConfig, calibration: CalibrationSet) -> list[slice]:
    """Return the windows that go through the model together."""
    count = len(calibration.windows)
    size = max(1, 2 * count // (config.num_hidden_layers + 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
