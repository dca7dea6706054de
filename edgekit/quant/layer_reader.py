"""A checkpoint in torch, one layer at a time: embedding, layers, head. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edgekit.checkpoint.lazy import read_all, strips
from edgekit.errors import CalibrationError
from edgekit.models.config import ModelConfig, tensor_shapes
from edgekit.progress import Progress
from edgekit.quant.calibrate import TensorSource
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.decoder_layer import DecoderLayer, LayerTensors
from edgekit.quant.torch_run import torch_device

EMBEDDING_ROWS = 4096
"""Rows of the embedding read at a time."""


class LayerReader:
    """Reads weights to the device and runs layers on residual streams kept in host memory.

    Args:
        open_tensor: Opens a checkpoint tensor by name.
        config: The architecture.
        calibration: Token windows.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        progress: Told of the embedding; of the rest by whoever works on it.

    Raises:
        QuantizationError: The device does not exist.
    """

    def __init__(
        self,
        open_tensor: TensorSource,
        config: ModelConfig,
        calibration: CalibrationSet,
        device: str,
        progress: Progress,
    ) -> None:
        self.open = open_tensor
        self.config = config
        self.calibration = calibration
        self.device = torch_device(device)
        self.window = calibration.windows.shape[1]
        self.layer = DecoderLayer(config, self.window, self.device)
        self.progress = progress

    def embed(self) -> torch.Tensor:
        """Return the windows' embeddings, float32 [n, S, hidden], a strip of the table at a time.

        Raises:
            CalibrationError: A token id is outside the vocabulary.
        """
        ids = self.calibration.windows
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise CalibrationError(
                f"the calibration data has token ids up to {ids.max()}, the model "
                f"{self.config.vocab_size} tokens",
                "Use the checkpoint's own tokenizer",
            )
        table = self.open("model.embed_tokens.weight")
        hidden = np.empty((*ids.shape, self.config.hidden_size), np.float32)
        for start in range(0, table.shape[0], EMBEDDING_ROWS):
            stop = min(start + EMBEDDING_ROWS, table.shape[0])
            here = (ids >= start) & (ids < stop)
            if here.any():
                hidden[here] = table.rows(start, stop)[ids[here] - start]
        self.progress.advance(table.stored_bytes, "embedding")
        return torch.from_numpy(hidden)

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor, float32, on the device."""
        return torch.from_numpy(np.ascontiguousarray(read_all(self.open(name)))).to(self.device)

    def strips(self, name: str, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield ``(first_row, float32 [at most rows, K])`` of a tensor, on the device."""
        for start, part in strips(self.open(name), rows):
            yield start, torch.from_numpy(np.ascontiguousarray(part)).to(self.device)

    def layer_tensors(self, index: int) -> dict[str, torch.Tensor]:
        """Return the tensors of layer ``index`` by their names within it."""
        prefix = f"model.layers.{index}."
        return {name.removeprefix(prefix): self.read(name) for name in self._names(prefix)}

    def layer_bytes(self, index: int) -> int:
        """Return the stored bytes of layer ``index``."""
        return sum(self.open(name).stored_bytes for name in self._names(f"model.layers.{index}."))

    def _names(self, prefix: str) -> list[str]:
        return [name for name in tensor_shapes(self.config) if name.startswith(prefix)]

    def run_layer(self, tensors: LayerTensors, stream: torch.Tensor, batch: int) -> torch.Tensor:
        """Return the residual stream [n, S, hidden] after a layer; the input is not changed."""
        parts = [
            self.layer(tensors, stream[start : start + batch].to(self.device)).to(stream.device)
            for start in range(0, stream.shape[0], batch)
        ]
        return torch.cat(parts)
