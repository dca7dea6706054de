"""The stage that measures GPTQ's guidance, and what is kept of it for a later try.

What :mod:`edgekit.quant.guidance` measures stands in the work folder until the calibration has
ended: it takes as long as a part of the layers does to quantize.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.models.config import ModelConfig, all_linears, lm_head
from edgekit.pipeline.kept_streams import StreamFile
from edgekit.pipeline.stored import Store
from edgekit.quant.calibrate import CalibrationOptions
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.guidance import (
    OUTPUT_BLOCK,
    PROBES,
    Guidance,
    guidance_bytes,
    measure_guidance,
)

TOKENS_NAME = ".guidance-tokens"
OUTPUTS_NAME = ".guidance-outputs"


def guidance_size(config: ModelConfig, calibration: CalibrationSet) -> int:
    """Return the bytes that guidance takes at most, in memory and on disk."""
    linears = all_linears(config)
    rows = sum(linear.out_features for linear in linears) - lm_head(config).out_features
    return 4 * (len(linears) * calibration.windows.size + rows * OUTPUT_BLOCK)


class Guiding:
    """Measures the guidance of one calibration, once.

    Args:
        store: The checkpoint, the work folder and whom to tell.
        calibration: The tokens.
        options: How the model is run.
        run: What besides the data decides the last bits.
    """

    def __init__(
        self, store: Store, calibration: CalibrationSet, options: CalibrationOptions, run: Any
    ) -> None:
        self._store = store
        self._calibration = calibration
        self._options = options
        key = store.key("guidance", [calibration.digest, PROBES, run])
        self._tokens, self._outputs = (
            StreamFile(store.writer.work, key, name) for name in (TOKENS_NAME, OUTPUTS_NAME)
        )

    def guidance(self) -> Guidance:
        """Return the guidance that an earlier try kept, or measure and keep it."""
        checkpoint, progress = self._store.checkpoint, self._store.progress
        size = guidance_bytes(checkpoint.tensor, checkpoint.config, self._calibration)
        progress.start("guidance", size)
        found = self._load()
        if found is not None:
            progress.advance(size, "taken up")
        else:
            found = measure_guidance(
                checkpoint.tensor,
                checkpoint.config,
                self._calibration,
                options=self._options,
                progress=progress,
            )
            self._tokens.save(0, list(found.tokens.values()))
            self._outputs.save(0, [np.concatenate([x.ravel() for x in found.outputs.values()])])
        progress.finish(f"{self._calibration.windows.size} tokens, {len(found.tokens)} linears")
        return found

    def _load(self) -> Guidance | None:
        """Return what an earlier try kept, if it is whole."""
        tokens, outputs = self._tokens.load(), self._outputs.load()
        if tokens is None or outputs is None:
            return None
        linears = all_linears(self._store.checkpoint.config)
        names = [linear.name for linear in linears]
        found = Guidance(dict(zip(names, tokens[1], strict=True)), {})
        (flat,), start = outputs[1], 0
        for linear in linears:
            if linear.name != lm_head(self._store.checkpoint.config).name:
                rows = linear.out_features
                stop = start + rows * min(rows, OUTPUT_BLOCK)
                found.outputs[linear.name] = flat[start:stop].reshape(rows, -1)
                start = stop
        return found

    def remove(self) -> None:
        """Remove what is kept."""
        self._tokens.remove()
        self._outputs.remove()
