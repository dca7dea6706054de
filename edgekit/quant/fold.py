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

import numpy as np
import torch

from edgekit.checkpoint.lazy import LazyTensor
from edgekit.quant.awq import SEARCH_ROWS, search_channel_scales
from edgekit.quant.decoder_layer import SUBLAYERS, DecoderLayer, linear
from edgekit.quant.hessian import InputMoments, MomentAccumulator
from edgekit.quant.scheme import QuantScheme

LayerSchemes = Mapping[str, QuantScheme | None]
"""Scheme of each linear by its name within the layer."""
LayerExponents = Mapping[str, int]
"""Scales of a linear, by its name within the layer, are stored times two to the power of this."""


def fold_layer(
    layer: DecoderLayer,
    tensors: dict[str, torch.Tensor],
    schemes: LayerSchemes,
    exponents: LayerExponents,
    batches: Iterable[torch.Tensor],
) -> list[str]:
    """Search channel scales for one layer and fold them into ``tensors``, in place.

    A sublayer with a dense linear is left alone: dense weights are stored as they are.

    Args:
        layer: The forward pass.
        tensors: Full-precision tensors of the layer.
        schemes: Theirs.
        exponents: Theirs.
        batches: Residual stream before the layer, [B, S, hidden] each.

    Returns:
        Norms and biases that changed, by name within the layer.
    """
    hessians = _hessians(layer, tensors, batches)
    changed: list[str] = []
    share = layer.config.num_attention_heads // layer.config.num_key_value_heads
    for sublayer, hessian in zip(SUBLAYERS, hessians, strict=True):
        names = sublayer.linears
        before = {"self_attn.o_proj": "self_attn.v_proj", "mlp.down_proj": "mlp.up_proj"}
        source = before.get(names[0], "")
        found = [schemes[name] for name in (*names, *([source] if source else []))]
        used = [scheme for scheme in found[: len(names)] if scheme is not None]
        if None in found:
            continue
        shared = share if names[0] == "self_attn.o_proj" else 1
        weights = [tensors[f"{name}.weight"] for name in names]
        scale = search_channel_scales(
            weights,
            used,
            hessian,
            exponents=[exponents[name] for name in names],
            share=shared,
            heads=layer.config.head_dim,
        )
        for name, weight in zip(names, weights, strict=True):
            tensors[f"{name}.weight"] = weight * scale
        if source:
            rows = (
                scale.view(-1, shared, layer.config.head_dim)[:, 0].reshape(-1)
                if (shared > 1)
                else scale
            )
            changed += _divide_rows(tensors, source, rows)
        else:
            key = f"{sublayer.norm}.weight"
            tensors[key] = tensors[key] / scale
            changed.append(key)
    return changed


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


def _divide_rows(tensors: dict[str, torch.Tensor], name: str, scale: torch.Tensor) -> list[str]:
    """Divide the output channels of linear ``name``; return its bias if it has one."""
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"] / scale[:, None]
    bias = f"{name}.bias"
    if bias not in tensors:
        return []
    tensors[bias] = tensors[bias] / scale
    return [bias]


def fold_head(
    norm: torch.Tensor,
    table: LazyTensor,
    scheme: QuantScheme,
    exponent: int,
    moments: InputMoments,
) -> tuple[torch.Tensor, torch.Tensor, InputMoments]:
    """Search the LM head's channel scales on a sample of its rows.

    Returns:
        The final norm divided by them, the scales [K], and the moments of the scaled inputs.
    """
    step = max(1, table.shape[0] // SEARCH_ROWS)
    sample = np.concatenate([table.rows(row, row + 1) for row in range(0, table.shape[0], step)])
    weight = torch.from_numpy(sample).to(norm.device)
    scale = search_channel_scales([weight], [scheme], moments.hessian, exponents=[exponent])
    outer = torch.outer(scale, scale)
    cross = None if moments.cross is None else moments.cross / outer
    return norm / scale, scale, InputMoments(moments.hessian / outer, cross)
