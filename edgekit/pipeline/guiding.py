"""The stage that measures GPTQ's guidance, and what is kept of it for a later try.

What :mod:`edgekit.quant.guidance` measures stands in the work folder until the calibration has
ended: it takes as long as a part of the layers does to quantize.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.bundle.writer import Noted
from edgekit.models.config import ModelConfig, all_linears, lm_head
from edgekit.pipeline.kept_streams import StreamFile
from edgekit.pipeline.stored import Store
from edgekit.quant.calibrate import CalibrationOptions
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.guidance import (
    GUIDANCE_TOKENS,
    OUTPUT_BLOCK,
    PROBES,
    Guidance,
    guidance_bytes,
    measure_guidance,
)

NAME = ".guidance"


def guidance_size(config: ModelConfig) -> int:
    """Return the bytes that guidance takes, in memory and on disk."""
    return 4 * sum(rows * block for rows, block in _shapes(config).values())


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shape [N, B] of each guided linear's."""
    head = lm_head(config).name
    return {
        x.name: (x.out_features, min(x.out_features, OUTPUT_BLOCK))
        for x in all_linears(config)
        if x.name != head
    }


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
        what = [calibration.digest, GUIDANCE_TOKENS, PROBES, OUTPUT_BLOCK, run]
        self._key = store.key("guidance", what)
        self._file = StreamFile(store.writer.work, self._key, NAME)

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
            self._file.save(0, [np.concatenate([product.ravel() for product in found.values()])])
            # What is noted makes the work folder worth keeping, before any linear is.
            self._store.writer.note(self._key, Noted(()))
        progress.finish(f"{len(found)} linears")
        return found

    def _load(self) -> Guidance | None:
        """Return what an earlier try kept, if it is whole."""
        kept = self._file.load()
        if kept is None:
            return None
        (flat,), start = kept[1], 0
        found = {}
        for name, (rows, block) in _shapes(self._store.checkpoint.config).items():
            found[name] = flat[start : start + rows * block].reshape(rows, block)
            start += rows * block
        return found

    def remove(self) -> None:
        """Remove what is kept."""
        self._file.remove()
