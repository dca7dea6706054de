"""Second moments of the divergence's gradients by the output of every linear.

Probes as in :mod:`edgekit.quant.probes` are sent back through the model, a layer at a time. Needs
torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgekit.quant.decoder_layer import DecoderLayer, LayerTensors, linear
from edgekit.quant.guidance import OUTPUT_BLOCK
from edgekit.quant.layer_reader import LayerReader
from edgekit.quant.probes import probe_head

BATCH_TOKENS = 2048
"""Tokens that go through a layer at a time, whole windows, one at least: bounds what is kept for
the way back."""


def output_gradients(reader: LayerReader, probes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each linear but the LM head with its gradients' products, [N, B].

    They are summed over tokens and probes: row n for the B output channels of its block, zero past
    the last. Progress advances by a layer's stored bytes ``probes + 3`` times, the head's
    ``probes + 4``.

    Args:
        reader: The model and the token windows.
        probes: Random probes of every token.
    """
    count = reader.config.num_hidden_layers
    streams = [reader.embed()]
    batch = max(1, BATCH_TOKENS // reader.window)
    for index in range(count):
        streams.append(reader.run_layer(reader.layer_tensors(index), streams[-1], batch))
        reader.progress.advance(reader.layer_bytes(index), f"layer {index + 1} of {count}, forward")
    _, signals = probe_head(reader, None, streams.pop(), probes)
    layer = _GradientLayer(reader, batch)
    for index in reversed(range(count)):
        found = layer.products(reader.layer_tensors(index), streams.pop(), signals)
        passed = reader.layer_bytes(index) * (probes + 2)
        reader.progress.advance(passed, f"layer {index + 1} of {count}, back")
        for name, product in found.items():
            yield f"model.layers.{index}.{name}", product


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

    def products(
        self, tensors: LayerTensors, stream: torch.Tensor, signals: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the products of each linear's gradients, [N, B].

        Args:
            tensors: The layer's.
            stream: Residual stream before it, [n, S, hidden].
            signals: Probes behind it, [probes, n, S, hidden]; replaced by those before it.
        """
        totals: dict[str, torch.Tensor] = {}
        for start in range(0, stream.shape[0], self._batch):
            part = slice(start, start + self._batch)
            for name, gradient in self._gradients(tensors, stream[part], signals[:, part]):
                rows = gradient.shape[-1]
                if name not in totals:
                    totals[name] = gradient.new_zeros((rows, min(OUTPUT_BLOCK, rows)))
                _add_products(gradient.flatten(0, 1), totals[name])
        return totals

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
