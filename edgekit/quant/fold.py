"""Folding AWQ's channel scales into what comes before each linear, exactly.

| linears | their inputs' 1/s goes into |
|---|---|
| q, k, v | ``input_layernorm`` |
| o | rows of v_proj and its bias, one scale per key/value channel |
| gate, up | ``post_attention_layernorm`` |
| down | rows of up_proj and its bias |
| LM head | ``model.norm`` |

Needs torch (extra ``calibrate``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from edgekit.checkpoint.lazy import LazyTensor
from edgekit.quant.awq import SEARCH_ROWS, search_channel_scales
from edgekit.quant.decoder_layer import SUBLAYERS, DecoderLayer, linear
from edgekit.quant.hessian import InputMoments, MomentAccumulator
from edgekit.quant.scheme import QuantScheme

VALUES = "self_attn.v_proj"
SOURCES = {"self_attn.o_proj": VALUES, "mlp.down_proj": "mlp.up_proj"}
"""Linears that make another's inputs, channel by channel."""
LayerSchemes = Mapping[str, QuantScheme | None]
"""Scheme of each linear by its name within the layer."""
LayerExponents = Mapping[str, int]
"""Scales of a linear, by its name within the layer, are stored times two to the power of this."""


@dataclass(frozen=True, slots=True)
class Fold:
    """What was folded into one linear's weight.

    Attributes:
        inputs: [K], its input channels were multiplied by these; None: they were not.
        outputs: [N], its output channels were divided by these; None: they were not.
    """

    inputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None

    def unfold_outputs(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` [N, K] with its outputs as they were before."""
        return weight if self.outputs is None else weight * self.outputs[:, None]

    def unfold(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` [N, K] for the inputs and outputs it had before."""
        unfolded = self.unfold_outputs(weight)
        return unfolded if self.inputs is None else unfolded / self.inputs


@dataclass(frozen=True, slots=True)
class FoldedLayer:
    """What was folded into a layer.

    Attributes:
        dense: Norms and biases that changed, by name within the layer.
        folds: Linears whose weights changed, by name within the layer.
    """

    dense: list[str] = field(default_factory=list)
    folds: dict[str, Fold] = field(default_factory=dict)

    def of(self, name: str) -> Fold:
        """Return what was folded into linear ``name``."""
        return self.folds.get(name, Fold())


def fold_layer(
    layer: DecoderLayer,
    tensors: dict[str, torch.Tensor],
    schemes: LayerSchemes,
    exponents: LayerExponents,
    batches: Iterable[torch.Tensor],
) -> FoldedLayer:
    """Search channel scales for one layer and fold them into ``tensors``, in place.

    A sublayer with a dense linear is left alone: dense weights are stored as they are.

    Args:
        layer: The forward pass.
        tensors: Full-precision tensors of the layer.
        schemes: Theirs.
        exponents: Theirs.
        batches: Residual stream before the layer, [B, S, hidden] each.
    """
    folded = FoldedLayer()
    share = layer.config.num_attention_heads // layer.config.num_key_value_heads
    for sublayer, hessian in zip(SUBLAYERS, _hessians(layer, tensors, batches), strict=True):
        names, source = sublayer.linears, SOURCES.get(sublayer.linears[0])
        used = [scheme for name in names if (scheme := schemes[name]) is not None]
        if len(used) < len(names) or (source is not None and schemes[source] is None):
            continue
        scale = search_channel_scales(
            [tensors[f"{name}.weight"] for name in names],
            used,
            hessian,
            exponents=[exponents[name] for name in names],
            share=share if source == VALUES else 1,
            heads=layer.config.head_dim,
        )
        for name in names:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * scale
            folded.folds[name] = replace(folded.of(name), inputs=scale)
        if source == VALUES:  # the query heads that read one have equal scales
            scale = scale.view(-1, share, layer.config.head_dim)[:, 0].reshape(-1)
        _divide(tensors, source or sublayer.norm, scale, folded)
    return folded


def _divide(
    tensors: dict[str, torch.Tensor], source: str, scale: torch.Tensor, folded: FoldedLayer
) -> None:
    """Divide the channels that norm or linear ``source`` makes, and note what changed."""
    weight, bias = f"{source}.weight", f"{source}.bias"
    if tensors[weight].ndim == 1:
        folded.dense.append(weight)
        tensors[weight] = tensors[weight] / scale
        return
    folded.folds[source] = replace(folded.of(source), outputs=scale)
    tensors[weight] = tensors[weight] / scale[:, None]
    if bias in tensors:
        folded.dense.append(bias)
        tensors[bias] = tensors[bias] / scale


def _hessians(
    layer: DecoderLayer, tensors: Mapping[str, torch.Tensor], batches: Iterable[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the second moment of each sublayer's input, running the layer once."""
    totals = [
        MomentAccumulator(weight.shape[1], weight.device, cross=False)
        for weight in (tensors[f"{sublayer.linears[0]}.weight"] for sublayer in SUBLAYERS)
    ]
    for batch in batches:
        x = batch
        for sublayer, total in zip(SUBLAYERS, totals, strict=True):
            inputs = sublayer.inputs(layer, tensors, x)
            total.add(inputs)
            if sublayer.residual:
                x = x + linear(tensors, sublayer.linears[0], inputs)
    return [total.result().hessian for total in totals]


def fold_head(
    norm: torch.Tensor,
    table: LazyTensor,
    scheme: QuantScheme,
    exponent: int,
    moments: InputMoments,
) -> tuple[torch.Tensor, Fold, InputMoments]:
    """Search the LM head's channel scales on a sample of its rows.

    Returns:
        The final norm divided by them, the head's fold, and the moments of the scaled inputs.
    """
    step = max(1, table.shape[0] // SEARCH_ROWS)
    sample = np.concatenate([table.rows(row, row + 1) for row in range(0, table.shape[0], step)])
    weight = torch.from_numpy(sample).to(norm.device)
    scale = search_channel_scales([weight], [scheme], moments.hessian, exponents=[exponent])
    outer = torch.outer(scale, scale)
    cross = None if moments.cross is None else moments.cross / outer
    return norm / scale, Fold(inputs=scale), InputMoments(moments.hessian / outer, cross)
