"""What GPTQ is told of the model behind a linear: which tokens and which errors matter.

Minimizing the squared error of a linear's outputs takes all tokens and all directions for equal;
the divergence of the model does not: to second order an error e of a linear's output costs
``(g · e)**2 / 2``, where g is a random probe of the softmax's Fisher information sent back to that
output (:mod:`edgekit.quant.probes`). Two things are made of the g of all tokens:

- The weight of a token: the root mean square of its g over the output channels, in proportion to
  the mean over tokens. The square itself is the measure in theory (GuidedQuant, arXiv 2505.07004);
  one probe is a noisy measure of it, and its root lets no few tokens decide alone.
- The gradients' second moment: ``G = sum of g gᵀ``, within blocks of output channels
  (:mod:`edgekit.quant.coupled`).

The tokens go through the full-precision model in chunks, so many windows at a time that the
residual streams before all layers of a chunk are no larger than the two that calibration carries:
each token passes every layer forwards twice and back once, and weights are read twice a chunk. Kept
are 4 bytes for each token and linear and a kibibyte for each output channel.
:func:`measure_guidance` needs torch (extra ``calibrate``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.checkpoint.lazy import Float32Array
from edgekit.models.config import ModelConfig, all_linears
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibrate import CalibrationOptions, TensorSource, require_torch
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.sensitivity import probe_bytes

OUTPUT_BLOCK = 256
"""Output channels whose gradients are multiplied with each other."""

PROBES = 1
"""Random probes of every token: the mean over a linear's output channels is one already."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """Of all linears, by name.

    Attributes:
        tokens: Weight of each token, [n, S], 1 in the mean.
        outputs: Second moment of the gradients, [N, B], but for the LM head; see
            :class:`edgekit.quant.output_gradients.OutputMoments`.
    """

    tokens: dict[str, Float32Array]
    outputs: dict[str, Float32Array]


def measure_guidance(
    tensors: TensorSource,
    config: ModelConfig,
    calibration: CalibrationSet,
    *,
    options: CalibrationOptions | None = None,
    progress: Progress = SILENT,
) -> Guidance:
    """Return the guidance of every linear.

    Progress advances by :func:`guidance_bytes`.

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
    shape = calibration.windows.shape
    squares: dict[str, Float32Array] = {
        linear.name: np.empty(shape, np.float32) for linear in all_linears(config)
    }
    products: dict[str, Float32Array] = {}
    with torch.no_grad(), repeatable(settings.threads):
        for part in _chunks(config, calibration):
            chunk = CalibrationSet(calibration.windows[part], calibration.digest, 0)
            reader = LayerReader(tensors, config, chunk, settings.device, progress)
            for name, moments in output_gradients(reader, PROBES):
                squares[name][part] = moments.squares.cpu().numpy()
                if moments.products is not None:
                    found = moments.products.cpu().numpy()
                    products[name] = products[name] + found if name in products else found
    weights = {name: token_weights(square) for name, square in squares.items()}
    return Guidance(weights, {name: products[name] for name in squares if name in products})


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


def guidance_bytes(tensors: TensorSource, config: ModelConfig, calibration: CalibrationSet) -> int:
    """Return the stored bytes that pass: a tensor's count once for each pass through it."""
    return len(_chunks(config, calibration)) * probe_bytes(tensors, config, PROBES)


def _chunks(config: ModelConfig, calibration: CalibrationSet) -> list[slice]:
    """Return the windows that go through the model together."""
    count = len(calibration.windows)
    size = max(1, 2 * count // (config.num_hidden_layers + 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
