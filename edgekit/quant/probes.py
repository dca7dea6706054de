"""How much each linear's rounding error disturbs the model's output, by probes sent backwards.

For a small change d of the logits the KL divergence is ``d F d / 2``, where F = diag(p) - p pᵀ is
the Fisher information of the softmax p. A probe ``g = s r - p (s · r)`` with ``r = sqrt(p)`` and
random signs s has mean square F, so ``d F d`` is the mean of ``(g · d)**2``. Sent backwards, one
probe meets the rounding errors of every linear: the cost is one pass per probe and grows with the
number of layers, not with its square as running a model per linear does.

Squares are of sums over ``BLOCK_TOKENS`` tokens: longer ones add noise faster than the effect of
errors that act together. The LM head's own divergence is computed as it is. Memory is bounded by a
decoder layer in float32, twice, the residual streams before each layer and the probes. Needs torch
(extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from edgekit.models.config import all_linears, layer_linears, lm_head
from edgekit.quant.decoder_layer import DecoderLayer, LayerTensors, linear
from edgekit.quant.gptq import round_to_nearest, search_scales
from edgekit.quant.layer_reader import LayerReader
from edgekit.quant.plan import Schemes
from edgekit.quant.scheme import QuantScheme
from edgekit.units import MIB

BLOCK_TOKENS = 16
"""Tokens of a window whose errors are taken to act together."""
BATCH_TOKENS = 512
"""Tokens that go through a layer at a time, whole windows, one at least: bounds what is kept for
the way back."""
STRIP_BYTES = 16 * MIB
"""Float32 bytes of weights that are rounded, and of logits that are made, at a time."""
LARGEST_CHANGE = 80.0
"""Of a logit: exp of more overflows float32."""
SEED = 0
"""Of the probes' signs; no seed is better than another."""


def probe_model(reader: LayerReader, plan: Schemes, probes: int) -> dict[str, float]:
    """Return the divergence, nats per token, of rounding each planned linear alone.

    Progress advances by a layer's stored bytes ``probes + 3`` times, the head's ``probes + 4``.

    Args:
        reader: The model and the token windows.
        plan: Linears without a scheme are left out.
        probes: Random probes of every token.
    """
    count = reader.config.num_hidden_layers
    reader.progress.advance(0, "embedding")
    streams = [reader.embed()]
    batch = max(1, BATCH_TOKENS // reader.window)
    for index in range(count):
        streams.append(reader.run_layer(reader.layer_tensors(index), streams[-1], batch))
        reader.progress.advance(reader.layer_bytes(index), f"layer {index + 1} of {count}, forward")
    name = lm_head(reader.config).name
    head, signals = probe_head(reader, plan[name], streams.pop(), probes)
    found = {} if head.divergence is None else {name: head.divergence}
    layer = _ProbedLayer(reader, plan, batch)
    for index in reversed(range(count)):
        found.update(layer.probe(index, streams.pop(), signals))
    return {x.name: found[x.name] for x in all_linears(reader.config) if x.name in found}


def probe_head(
    reader: LayerReader, scheme: QuantScheme | None, stream: torch.Tensor, probes: int
) -> tuple[ProbedHead, torch.Tensor]:
    """Return what the head measured, and the probes before the final norm.

    Args:
        reader: The model.
        scheme: The head's; None: it is not rounded.
        stream: Final residual stream [n, S, hidden].
        probes: How many.

    Returns:
        Probes are float32 [probes, n, S, hidden], in host memory.
    """
    norm = reader.read("model.norm.weight")
    x = stream.flatten(0, 1).to(reader.device, copy=True).requires_grad_()
    with torch.enable_grad():
        normed = reader.layer.norm(norm, x)
    head = ProbedHead(reader, scheme, normed.detach(), probes)
    signals = torch.empty((probes, *stream.shape))
    for index, signal in enumerate(head.signals()):
        (before,) = torch.autograd.grad(normed, x, signal, retain_graph=True)
        signals[index] = before.view(stream.shape)
    return head, signals


class ProbedHead:
    """Probes of the logits of all tokens, a strip of the vocabulary at a time.

    Args:
        reader: The model.
        scheme: The head's; None: it is not rounded.
        hidden: What the head reads, float32 [T, hidden].
        probes: How many.
    """

    def __init__(
        self, reader: LayerReader, scheme: QuantScheme | None, hidden: torch.Tensor, probes: int
    ) -> None:
        self._reader = reader
        self._scheme = scheme
        self._hidden = hidden
        self._probes = probes
        self._table = reader.open(lm_head(reader.config).weight_key)
        self._rows = max(1, STRIP_BYTES // (4 * max(hidden.shape)))
        self._moved = torch.zeros((2, hidden.shape[0]), dtype=torch.float64, device=hidden.device)

    @property
    def divergence(self) -> float | None:
        """Mean KL divergence of rounding the head, once :meth:`signals` are made.

        It is ``log E[exp(d)] - E[d]`` under the full model's probabilities: in this form float32 is
        enough, since the change d of a logit is small where two log-probabilities are not.
        """
        if self._scheme is None:
            return None
        growth, mean = self._moved
        return float((growth.log1p() - mean).mean())

    def signals(self) -> torch.Tensor:
        """Return the probes as the head's input sees them, float32 [probes, T, hidden]."""
        hidden = self._hidden
        total = torch.full_like(hidden[:, 0], -torch.inf)  # [T], log of the summed exponentials
        for strip in self._strips(1):
            total = torch.logaddexp(total, F.linear(hidden, strip).logsumexp(-1))
        generator = torch.Generator(hidden.device).manual_seed(SEED)
        signals = hidden.new_zeros((self._probes, *hidden.shape))
        sums = hidden.new_zeros((self._probes, hidden.shape[0], 1))
        expected = torch.zeros_like(hidden)
        for strip in self._strips(self._probes + 3):
            likely = F.linear(hidden, strip).sub_(total[:, None]).exp_()
            self._add_divergence(likely, strip)
            expected.addmm_(likely, strip)
            root = likely.sqrt_()
            negative, coins = -root, torch.empty_like(root, dtype=torch.uint8)
            for index, signal in enumerate(signals):
                upright = coins.random_(0, 2, generator=generator).bool()
                signed = torch.where(upright, root, negative)
                signal.addmm_(signed, strip)
                sums[index] += signed.sum(-1, keepdim=True)
        signals -= sums * expected
        return signals

    def _add_divergence(self, likely: torch.Tensor, strip: torch.Tensor) -> None:
        """Add up what rounding a strip of the head changes, weighed by probability [T, rows]."""
        if self._scheme is None:
            return
        moved = F.linear(self._hidden, _rounding_error(strip, self._scheme))
        self._moved[1] += (likely * moved).sum(-1)
        self._moved[0] += (likely * moved.clamp_max_(LARGEST_CHANGE).expm1_()).sum(-1)

    def _strips(self, passes: int) -> Iterator[torch.Tensor]:
        """Yield the head's rows; each advances progress ``passes`` times when it is done."""
        for start, strip in self._reader.strips(self._table.name, self._rows):
            yield strip
            stop = start + strip.shape[0]
            size, rows = self._table.stored_bytes, self._table.shape[0]
            done = size * stop // rows - size * start // rows
            self._reader.progress.advance(passes * done, f"LM head, {stop}/{rows} rows")


class _ProbedLayer:
    """A decoder layer that tells what its linears' rounding errors do to the probes behind it.

    Args:
        reader: The model.
        plan: Schemes.
        batch: Windows at a time.
    """

    def __init__(self, reader: LayerReader, plan: Schemes, batch: int) -> None:
        self._reader = reader
        self._plan = plan
        self._batch = batch
        self._layer = DecoderLayer(reader.config, reader.window, reader.device, self._linear)
        self._errors: dict[str, torch.Tensor] = {}
        self._steps: dict[str, torch.Tensor] = {}

    def _linear(self, tensors: LayerTensors, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return a linear's output plus 0 times its rounding error's, [B, S, N].

        The derivative by that 0, of which each block of tokens has one, is how much of the error
        arrives at a probe.
        """
        output = linear(tensors, name, x)
        error = self._errors.get(name)
        if error is None:
            return output
        windows, length = x.shape[:2]
        step = x.new_zeros((windows, -(-length // BLOCK_TOKENS), 1), requires_grad=True)
        self._steps[name] = step
        by_token = step.expand(-1, -1, BLOCK_TOKENS).flatten(1)[:, :length, None]
        return output + by_token * F.linear(x.detach(), error)

    def probe(self, index: int, stream: torch.Tensor, signals: torch.Tensor) -> dict[str, float]:
        """Return the divergence of each planned linear of a layer.

        Args:
            index: The layer's.
            stream: Residual stream before it, [n, S, hidden].
            signals: Probes behind it, [probes, n, S, hidden]; replaced by those before it.
        """
        reader, prefix = self._reader, f"model.layers.{index}."
        tensors = reader.layer_tensors(index)
        names = [x.name.removeprefix(prefix) for x in layer_linears(reader.config, index)]
        self._errors = {
            name: _rounding_error(tensors[f"{name}.weight"], scheme)
            for name in names
            if (scheme := self._plan[prefix + name]) is not None
        }
        totals = dict.fromkeys(self._errors, 0.0)
        size, windows = reader.layer_bytes(index) * (len(signals) + 2), stream.shape[0]
        for start in range(0, windows, self._batch):
            stop = min(start + self._batch, windows)
            self._probe_windows(tensors, stream[start:stop], signals[:, start:stop], totals)
            done = size * stop // windows - size * start // windows
            reader.progress.advance(done, f"{prefix.removeprefix('model.')}*, {stop}/{windows}")
        return {
            prefix + name: total / (2 * signals[..., 0].numel()) for name, total in totals.items()
        }

    def _probe_windows(
        self,
        tensors: LayerTensors,
        stream: torch.Tensor,
        signals: torch.Tensor,
        totals: dict[str, float],
    ) -> None:
        """Send all probes of some windows back through the layer; add squares to ``totals``."""
        self._steps = {}
        x = stream.to(self._reader.device, copy=True).requires_grad_()
        with torch.enable_grad():
            output = self._layer(tensors, x)
        for signal in signals:
            before, *slopes = torch.autograd.grad(
                output, [x, *self._steps.values()], signal.to(x.device), retain_graph=True
            )
            signal.copy_(before)
            for name, slope in zip(self._steps, slopes, strict=True):
                totals[name] += float(slope.square().sum(dtype=torch.float64))


def _rounding_error(weight: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
    """Return what rounding to nearest with searched scales adds to ``weight`` [N, K]."""
    error = torch.empty_like(weight)
    rows = max(1, STRIP_BYTES // (4 * weight.shape[1]))
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows]
        rounded = round_to_nearest(part, search_scales(part, scheme), scheme)
        error[start : start + rows] = rounded.dequantize() - part
    return error
