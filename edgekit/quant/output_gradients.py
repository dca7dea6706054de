"""Squared gradients of the divergence by the output of every linear, token by token.

Probes as in :mod:`edgekit.quant.probes` are sent back through the model, a layer at a time. Needs
torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edgekit.models.config import lm_head
from edgekit.quant.decoder_layer import DecoderLayer, LayerTensors, linear
from edgekit.quant.layer_reader import LayerReader
from edgekit.quant.probes import BATCH_TOKENS, probe_head


def output_gradients(reader: LayerReader, probes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each linear and its mean squared gradient [n, S] over probes and output channels.

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
    yield lm_head(reader.config).name, head.uncertainty.view(shape) / reader.config.vocab_size
    layer = _GradientLayer(reader, batch)
    for index in reversed(range(count)):
        found = layer.squares(reader.layer_tensors(index), streams.pop(), signals)
        passed = reader.layer_bytes(index) * (probes + 2)
        reader.progress.advance(passed, f"layer {index + 1} of {count}, back")
        for name, square in found.items():
            yield f"model.layers.{index}.{name}", square


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

    def squares(
        self, tensors: LayerTensors, stream: torch.Tensor, signals: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return each linear's mean squared gradient, [n, S].

        Args:
            tensors: The layer's.
            stream: Residual stream before it, [n, S, hidden].
            signals: Probes behind it, [probes, n, S, hidden]; replaced by those before it.
        """
        parts: dict[str, list[torch.Tensor]] = {}
        for start in range(0, stream.shape[0], self._batch):
            part = slice(start, start + self._batch)
            for name, square in self._batch_squares(tensors, stream[part], signals[:, part]):
                parts.setdefault(name, []).append(square)
        return {name: torch.cat(part) for name, part in parts.items()}

    def _batch_squares(
        self, tensors: LayerTensors, stream: torch.Tensor, signals: torch.Tensor
    ) -> list[tuple[str, torch.Tensor]]:
        """Send all probes of some windows back through the layer."""
        x = stream.to(self._device, copy=True).requires_grad_()
        with torch.enable_grad():
            output = self._layer(tensors, x)
        outputs = self._outputs
        totals = [torch.zeros(stream.shape[:2], device=self._device) for _ in outputs]
        for signal in signals:
            before, *gradients = torch.autograd.grad(
                output, [x, *outputs.values()], signal.to(x.device), retain_graph=True
            )
            signal.copy_(before)
            for total, gradient in zip(totals, gradients, strict=True):
                total.add_(gradient.square().mean(-1), alpha=1 / len(signals))
        self._outputs = {}
        return list(zip(outputs, totals, strict=True))
