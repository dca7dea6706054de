"""AWQ's folding is exact and its search never loses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from factories import make_config, random_tensors

from edgekit.models.config import layer_linears
from edgekit.models.families import model_config_from_hf
from edgekit.quant.awq import search_channel_scales
from edgekit.quant.decoder_layer import DecoderLayer
from edgekit.quant.fold import Fold, fold_layer
from edgekit.quant.gptq import round_to_nearest, search_scales
from edgekit.quant.hessian import InputMoments, output_error
from edgekit.quant.layerwise import _Error
from edgekit.quant.scheme import QuantScheme

SCHEME = QuantScheme(4, 32, "mse", "awq")


def layer_of(family: str, **options: Any) -> tuple[DecoderLayer, dict[str, torch.Tensor]]:
    config = make_config(family, **options)
    prefix = "model.layers.0."
    tensors = {
        name.removeprefix(prefix): torch.from_numpy(values)
        for name, values in random_tensors(config).items()
        if name.startswith(prefix)
    }
    return DecoderLayer(model_config_from_hf(config), 16, torch.device("cpu")), tensors


@pytest.mark.parametrize(
    ("family", "options"),
    [("qwen2", {}), ("llama", {"kv_heads": 4}), ("qwen3", {"head_dim": 32, "kv_heads": 1})],
)
def test_folding_preserves_the_function(family: str, options: dict[str, Any]) -> None:
    """The folded layer computes the original's output, with GQA, MHA, biases and q/k norm."""
    layer, tensors = layer_of(family, **options)
    x = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(0))
    x[..., :5] *= 12
    before = layer(tensors, x)
    folded = dict(tensors)
    schemes = {
        spec.name.removeprefix("model.layers.0."): SCHEME for spec in layer_linears(layer.config, 0)
    }
    result = fold_layer(layer, folded, schemes, dict.fromkeys(schemes, 0), [x[:2], x[2:]])
    torch.testing.assert_close(layer(folded, x), before, rtol=1e-4, atol=1e-4)
    assert "input_layernorm.weight" in result.dense
    assert ("self_attn.v_proj.bias" in result.dense) == (family == "qwen2")
    for name in schemes:
        weight = f"{name}.weight"
        assert not torch.equal(folded[weight], tensors[weight])
        unfolded = result.of(name).unfold(folded[weight])
        torch.testing.assert_close(unfolded, tensors[weight], rtol=1e-5, atol=1e-7)


def test_sublayers_with_a_dense_linear_are_left_alone() -> None:
    """A dense linear is stored as it is, so nothing may be folded into or out of it."""
    layer, tensors = layer_of("qwen2")
    folded = dict(tensors)
    schemes: dict[str, QuantScheme | None] = {
        spec.name.removeprefix("model.layers.0."): SCHEME for spec in layer_linears(layer.config, 0)
    }
    schemes["self_attn.k_proj"] = schemes["mlp.up_proj"] = None
    x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(1))
    fold_layer(layer, folded, schemes, dict.fromkeys(schemes, 0), [x])
    for name in ("self_attn.k_proj", "self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
        assert torch.equal(folded[f"{name}.weight"], tensors[f"{name}.weight"])


def test_errors_are_those_of_the_outputs_before_folding() -> None:
    """Weight and output errors of a folded weight are those of the original's own outputs."""
    rng = torch.Generator().manual_seed(5)
    inputs, weight = torch.randn(300, 64, generator=rng), torch.randn(16, 64, generator=rng)
    fold = Fold(*(torch.rand(size, generator=rng) + 0.5 for size in (64, 16)))
    assert fold.inputs is not None
    assert fold.outputs is not None
    folded = weight * fold.inputs / fold.outputs[:, None]
    read = inputs / fold.inputs
    rounded = round_to_nearest(folded, search_scales(folded, SCHEME), SCHEME)
    error = _Error(InputMoments(read.t() @ read / 300), fold)
    error.add(folded, rounded)
    outputs, wanted = read @ rounded.dequantize().t() * fold.outputs, inputs @ weight.t()
    relative = float((outputs - wanted).square().sum() / wanted.square().sum())
    assert error.relative_output == pytest.approx(relative, rel=1e-3)
    change = rounded.dequantize() * fold.outputs[:, None] / fold.inputs - weight
    assert error.weight.squared_error == pytest.approx(float(change.square().sum()), rel=1e-3)


def test_search_lowers_the_output_error() -> None:
    """With a few loud channels the found scales beat none; the loss is on real outputs."""
    rng = torch.Generator().manual_seed(4)
    inputs = torch.randn(300, 64, generator=rng)
    inputs[:, :4] *= 20
    hessian = inputs.t() @ inputs / 300
    weight = torch.randn(32, 64, generator=rng) * 0.05
    scale = search_channel_scales([weight], [SCHEME], hessian, exponents=[0])

    def error(s: torch.Tensor) -> float:
        scaled = weight * s
        scales = search_scales(scaled, SCHEME, hessian.diagonal() / s.square())
        rounded = round_to_nearest(scaled, scales, SCHEME).dequantize() / s
        outputs = inputs @ (rounded - weight).t()
        loss = output_error(rounded - weight, hessian)
        np.testing.assert_allclose(loss, float(outputs.square().sum() / 300), rtol=1e-3)
        return loss

    assert error(scale) < 0.9 * error(torch.ones(64))


def test_shared_scales_are_equal_across_query_heads() -> None:
    """o_proj's scales repeat for the query heads that read one key/value head."""
    rng = torch.Generator().manual_seed(6)
    inputs = torch.randn(200, 64, generator=rng) * torch.exp(torch.randn(64, generator=rng))
    weight = torch.randn(32, 64, generator=rng)
    hessian = inputs.t() @ inputs / 200
    scale = search_channel_scales([weight], [SCHEME], hessian, exponents=[0], share=2, heads=16)
    heads = scale.view(2, 2, 16)
    assert torch.equal(heads[:, 0], heads[:, 1])
    assert not torch.equal(heads[0], heads[1])
