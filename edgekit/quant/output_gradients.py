"""Second moments of the divergence's gradients by the output of every linear.

Probes as in :mod:`edgekit.quant.probes` are sent back through the model, a layer at a time. Needs
torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edgekit.models.config import lm_head
from edgekit.quant.decoder_layer import DecoderLayer, LayerTensors, linear
from edgekit.quant.guidance import OUTPUT_BLOCK
from edgekit.quant.layer_reader import LayerReader
from edgekit.quant.probes import probe_head

BATCH_TOKENS = 2048
"""Tokens that go through a layer at a time, whole windows, one at least: bounds what is kept for
the way back."""


@dataclass(frozen=True, slots=True)
class OutputMoments:
    """Of the gradients at one linear's outputs.

    Attributes:
        squares: Mean over output channels and probes of each token's squared gradient, [n, S].
        products: Sums over tokens and probes of gradients' products, [N, B]: row n for the B
            output channels of its block, zero past the last; None for the LM head.
    """

    squares: torch.Tensor
    products: torch.Tensor | None = None


def output_gradients(reader: LayerReader, probes: int) -> Iterator[tuple[str, OutputMoments]]:
    """Yield each linear and its gradients' moments.

    The head comes first, exactly: its gradients' mean square is the Fisher information's trace.
    Progress advances by a layer's stored bytes ``probes + 3`` times, the head's ``probes + 4``.

    Args:
        reader: The model and the token windows.
        probes: Random probes of every token.
    """
    count, shape = reader.config.num_hidden_layers, reader.calibration.windows.shape
    streams = [reader.embed()]
    batch = max(1, BATCH_TOKENS // reader.window)
    for index in range(count):
        streams.append(reader.run_layer(reader.layer_tensors(index), streams[-1], batch))
        reader.progress.advance(reader.layer_bytes(index), f"layer {index + 1} of {count}, forward")
    head, signals = probe_head(reader, None, streams.pop(), probes)
    certain = head.uncertainty.view(shape) / reader.config.vocab_size
    yield lm_head(reader.config).name, OutputMoments(certain)
    layer = _GradientLayer(reader, batch)
    for index in reversed(range(count)):
        found = layer.moments(reader.layer_tensors(index), streams.pop(), signals)
        passed = reader.layer_bytes(index) * (probes + 2)
        reader.progress.advance(passed, f"layer {index + 1} of {count}, back")
        for name, moments in found.items():
            yield f"model.layers.{index}.{name}", moments


class _GradientLayer:
    """A decoder layer that tells the gradients at its linears' outputs.

    Args:
        reader: The model.
        batch: Windows at a time.
    """

    def __init__(self, reader: LayerReader, batch: int) -> None:
        self._device = reader.device
        self._batch = batch
        self._layer = DecoderLayer(reader.config, reader.window, reader.device, self._linear)
        self._outputs: dict[str, torch.Tensor] = {}

    def _linear(self, tensors: LayerTensors, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return a linear's output, [B, S, N], and note it."""
        self._outputs[name] = output = linear(tensors, name, x)
        return output

    def moments(
        self, tensors: LayerTensors, stream: torch.Tensor, signals: torch.Tensor
    ) -> dict[str, OutputMoments]:
        """Return the moments of each linear's gradients.

        Args:
            tensors: The layer's.
            stream: Residual stream before it, [n, S, hidden].
            signals: Probes behind it, [probes, n, S, hidden]; replaced by those before it.
        """
        squares: dict[str, torch.Tensor] = {}
        products: dict[str, torch.Tensor] = {}
        for start in range(0, stream.shape[0], self._batch):
            part = slice(start, start + self._batch)
            for name, gradient in self._gradients(tensors, stream[part], signals[:, part]):
                if name not in squares:
                    squares[name] = torch.zeros(stream.shape[:2], device=self._device)
                    width = min(OUTPUT_BLOCK, gradient.shape[-1])
                    products[name] = torch.zeros((gradient.shape[-1], width), device=self._device)
                squares[name][part].add_(gradient.square().mean(-1), alpha=1 / len(signals))
                _add_products(gradient.flatten(0, 1), products[name])
        return {name: OutputMoments(squares[name], products[name]) for name in squares}

    def _gradients(
        self, tensors: LayerTensors, stream: torch.Tensor, signals: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Send all probes of some windows back through the layer; yield gradients [B, S, N]."""
        x = stream.to(self._device, copy=True).requires_grad_()
        self._outputs = {}
        with torch.enable_grad():
            output = self._layer(tensors, x)
        outputs, self._outputs = self._outputs, {}
        for signal in signals:
            before, *gradients = torch.autograd.grad(
                output, [x, *outputs.values()], signal.to(x.device), retain_graph=True
            )
            signal.copy_(before)
            yield from zip(outputs, gradients, strict=True)


def _add_products(gradients: torch.Tensor, products: torch.Tensor) -> None:
    """Add the products of gradients [T, N] within each block to ``products`` [N, B]."""
    rows, size = products.shape
    for start in range(0, rows, size):
        block = gradients[:, start : start + size]
        products[start : start + size, : block.shape[1]].addmm_(block.t(), block)
