"""The stage that weighs calibration tokens, and what is kept of it for a later try.

What :mod:`edgekit.quant.token_weights` measures stands in the work folder until the calibration
has ended: it takes as long to measure as a part of the layers to quantize.
"""

from __future__ import annotations

from typing import Any

from edgekit.models.config import ModelConfig, all_linears
from edgekit.pipeline.kept_streams import StreamFile
from edgekit.pipeline.stored import Store
from edgekit.quant.calibrate import CalibrationOptions
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.token_weights import (
    PROBES,
    TokenWeights,
    measure_token_weights,
    token_weight_bytes,
)

NAME = ".token-weights"


def weight_bytes(config: ModelConfig, calibration: CalibrationSet) -> int:
    """Return the bytes that the weights of all tokens take, in memory and on disk."""
    return 4 * len(all_linears(config)) * calibration.windows.size


class Weighing:
    """Weighs the tokens of one calibration, once.

    Args:
        store: The checkpoint, the work folder and whom to tell.
        calibration: The tokens.
        options: How the model is run.
        run: What besides the data decides the weights' last bits.
    """

    def __init__(
        self, store: Store, calibration: CalibrationSet, options: CalibrationOptions, run: Any
    ) -> None:
        self._store = store
        self._calibration = calibration
        self._options = options
        key = store.key("token weights", [calibration.digest, PROBES, run])
        self._file = StreamFile(store.writer.work, key, NAME)

    def weights(self) -> TokenWeights:
        """Return the weights that an earlier try kept, or measure and keep them."""
        checkpoint, progress = self._store.checkpoint, self._store.progress
        names = [linear.name for linear in all_linears(checkpoint.config)]
        size = token_weight_bytes(checkpoint.tensor, checkpoint.config, self._calibration)
        progress.start("weigh tokens", size)
        kept = self._file.load()
        if kept is not None:
            progress.advance(size, "taken up")
            found: TokenWeights = dict(zip(names, kept[1], strict=True))
        else:
            found = measure_token_weights(
                checkpoint.tensor,
                checkpoint.config,
                self._calibration,
                options=self._options,
                progress=progress,
            )
            self._file.save(0, [found[name] for name in names])
        progress.finish(f"{self._calibration.windows.size} tokens for {len(names)} linears")
        return found

    def remove(self) -> None:
        """Remove what is kept."""
        self._file.remove()
