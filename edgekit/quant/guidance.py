"""What GPTQ is told of the model behind a linear: which errors of its outputs matter.

Minimizing the squared error of a linear's outputs takes all directions for equal; the divergence of
the model does not: to second order an error e of a linear's output costs ``(g · e)**2 / 2``, where
g is a random probe of the softmax's Fisher information sent back to that output
(:mod:`edgekit.quant.probes`). Guidance is ``G = sum of g gᵀ`` over a sample of the calibration
tokens, within blocks of output channels; :mod:`edgekit.quant.coupled` uses it. The LM head has
none: there every output counts for itself.

The sample goes through the full-precision model in chunks, so many windows at a time that the
residual streams before all layers of a chunk are no larger than the two that calibration carries:
each token passes every layer forwards twice and back once, and weights are read twice a chunk. Kept
is a kibibyte for each output channel. :func:`measure_guidance` needs torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.checkpoint.lazy import Float32Array
from edgekit.models.config import ModelConfig, all_linears, lm_head
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibrate import CalibrationOptions, TensorSource, require_torch
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.sensitivity import probe_bytes

OUTPUT_BLOCK = 256
"""Output channels whose gradients are multiplied with each other."""
GUIDANCE_TOKENS = 32768
"""Most tokens that guidance is measured on; half as many lose half the gain (ADR 8)."""
PROBES = 1
"""Random probes of every token."""

Guidance = Mapping[str, Float32Array]
"""Linear to the second moment of the gradients at its outputs, [N, B]: row n of G for the B output
channels of its block, zero past the last."""


def measure_guidance(
    tensors: TensorSource,
    config: ModelConfig,
    calibration: CalibrationSet,
    *,
    options: CalibrationOptions | None = None,
    progress: Progress = SILENT,
) -> dict[str, Float32Array]:
    """Return the guidance of every linear but the LM head.

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
    products: dict[str, Float32Array] = {}
    with torch.no_grad(), repeatable(settings.threads):
        for chunk in _chunks(config, calibration):
            reader = LayerReader(tensors, config, chunk, settings.device, progress)
            for name, product in output_gradients(reader, PROBES):
                found = product.cpu().numpy()
                products[name] = products[name] + found if name in products else found
    head = lm_head(config).name
    return {x.name: products[x.name] for x in all_linears(config) if x.name != head}


def guidance_bytes(tensors: TensorSource, config: ModelConfig, calibration: CalibrationSet) -> int:
    """Return the stored bytes that pass: a tensor's count once for each pass through it."""
    return len(_chunks(config, calibration)) * probe_bytes(tensors, config, PROBES)


def _chunks(config: ModelConfig, calibration: CalibrationSet) -> list[CalibrationSet]:
    """Return windows from all over the calibration, as many together as go through the model."""
    windows = calibration.windows
    count = min(len(windows), max(1, GUIDANCE_TOKENS // windows.shape[1]))
    chosen = np.arange(count) * len(windows) // count
    sample = np.ascontiguousarray(windows[chosen, :GUIDANCE_TOKENS])
    size = max(1, 2 * len(windows) // (config.num_hidden_layers + 1))
    return [
        CalibrationSet(sample[start : start + size], calibration.digest, calibration.source_tokens)
        for start in range(0, len(sample), size)
    ]
