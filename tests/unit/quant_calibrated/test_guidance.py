"""Guidance: weights and products are those of gradients, and the moments are sums under them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_layerwise import make, windows
from test_sensitivity import CONFIG, Source, Steps

from edgekit.errors import CalibrationError
from edgekit.models.config import all_linears
from edgekit.progress import SILENT
from edgekit.quant import guidance, output_gradients
from edgekit.quant.calibrate import CalibrationOptions
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.decoder_layer import DecoderLayer, LayerTensors, linear
from edgekit.quant.guidance import Guidance, guidance_bytes, measure_guidance
from edgekit.quant.hessian import MomentAccumulator
from edgekit.quant.layer_reader import LayerReader


def measure(data: CalibrationSet) -> Guidance:
    """Return the guidance of a random model."""
    return measure_guidance(Source(), CONFIG, data, options=CalibrationOptions(threads=1))


def brute_force(data: CalibrationSet, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is expected of each token's squared gradient, and of the sum of g gᵀ.

    They are those of J F Jᵀ, J being the logits' derivative of all tokens after it: a backward pass
    for every logit of every token.
    """
    source, outputs = Source(), {}
    tensors = {key: torch.from_numpy(array) for key, array in source.arrays.items()}

    def apply(layer: LayerTensors, short: str, x: torch.Tensor) -> torch.Tensor:
        outputs[short] = linear(layer, short, x)
        return outputs[short]

    layer = DecoderLayer(CONFIG, data.windows.shape[1], torch.device("cpu"), apply)
    x = tensors["model.embed_tokens.weight"][torch.from_numpy(data.windows)].requires_grad_()
    seen = {}
    for index in range(CONFIG.num_hidden_layers):
        prefix = f"model.layers.{index}."
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        x = layer(own, x)
        seen.update({prefix + short: output for short, output in outputs.items()})
    logits = layer.norm(tensors["model.norm.weight"], x) @ tensors["lm_head.weight"].t()
    root = torch.softmax(logits.detach(), -1).sqrt()
    total, width = torch.zeros(data.windows.shape), seen[name].shape[-1]
    products = torch.zeros(width, width)
    for token in range(data.windows.shape[1]):
        for word in range(CONFIG.vocab_size):  # F = B Bᵀ, column by column
            column = -(root[:, token] ** 2) * root[:, token, word, None]
            column[:, word] += root[:, token, word]
            scalar = (logits[:, token] * column).sum()
            (gradient,) = torch.autograd.grad(scalar, seen[name], retain_graph=True)
            total += gradient.square().mean(-1)
            flat = gradient.flatten(0, 1)
            products += flat.t() @ flat
    return total, products


def test_weighted_moments_are_the_direct_sums() -> None:
    """Hessian, cross moment and drift are weighted means; weights of 1 change no bit."""
    rng = torch.Generator().manual_seed(1)
    full, seen = (torch.randn(60, 300, generator=rng) for _ in range(2))
    drift, weight = torch.randn(60, 8, generator=rng), torch.rand(60, generator=rng) + 0.1

    def moments(weights: torch.Tensor | None) -> Any:
        total = MomentAccumulator(300, torch.device("cpu"), cross=True, out_features=8)
        for part in (slice(0, 20), slice(20, 60)):
            own = None if weights is None else weights[part]
            total.add(seen[part], full[part], drift[part], own)
        return total.result()

    got, share = moments(weight), weight / weight.sum()
    for name, left in (("hessian", seen), ("cross", full), ("drift", drift)):
        want = torch.einsum("t,ti,tj->ij", share, left, seen)
        torch.testing.assert_close(getattr(got, name), want, rtol=1e-4, atol=1e-5)
        plain, ones = (getattr(moments(w), name) for w in (None, torch.ones(60)))
        assert torch.equal(plain, ones)


def test_moments_are_those_of_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many probes they are what brute force finds, block by block of the output channels."""
    monkeypatch.setattr(guidance, "PROBES", 4000)
    monkeypatch.setattr(guidance, "token_weights", lambda squares: squares)
    monkeypatch.setattr(output_gradients, "OUTPUT_BLOCK", 48)
    data = windows(CONFIG, count=1)
    data = CalibrationSet(data.windows[:, :6], "", 6)
    got = measure(data)
    for short in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"):
        name = f"model.layers.0.{short}"
        squares, products = (x.numpy() for x in brute_force(data, name))
        np.testing.assert_allclose(got.tokens[name], squares, rtol=0.25, atol=1e-3 * squares.max())
        rows, found = len(products), got.outputs[name] / 4000
        size = min(48, rows)
        assert found.shape == (rows, size)
        for start in range(0, rows, size):
            part = slice(start, min(start + size, rows))
            width = part.stop - start
            np.testing.assert_allclose(
                found[part, :width], products[part, part], atol=0.1 * products.max()
            )
            assert not found[part, width:].any()
    assert "lm_head" not in got.outputs


def test_the_heads_square_is_exact() -> None:
    """The head's gradients are the probes themselves: their mean square is known."""
    data = windows(CONFIG, count=2)
    reader = LayerReader(Source(), CONFIG, data, "cpu", SILENT)
    with torch.no_grad():
        found = dict(output_gradients.output_gradients(reader, 1))
        x = reader.embed()
        for index in range(CONFIG.num_hidden_layers):
            x = reader.run_layer(reader.layer_tensors(index), x, 2)
        hidden = reader.layer.norm(reader.read("model.norm.weight"), x)
        likely = torch.softmax(hidden @ reader.read("lm_head.weight").t(), -1)
    want = (1 - likely.square().sum(-1)) / CONFIG.vocab_size
    torch.testing.assert_close(found["lm_head"].squares, want)
    assert found["lm_head"].products is None


def test_chunks_cover_all_tokens_and_progress_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of every linear has a weight, 1 in the mean, however the windows are cut."""
    monkeypatch.setattr(output_gradients, "BATCH_TOKENS", 64)
    data, steps = windows(CONFIG, count=7), Steps()
    source = Source()
    found = measure_guidance(source, CONFIG, data, progress=steps)
    assert list(found.tokens) == [spec.name for spec in all_linears(CONFIG)]
    for own in found.tokens.values():
        assert own.shape == data.windows.shape
        assert own.dtype == np.float32
        assert (own > 0).all()
        assert own.mean() == pytest.approx(1)
    assert steps.done_bytes == guidance_bytes(source, CONFIG, data)
    for spec in all_linears(CONFIG)[:-1]:
        assert found.outputs[spec.name].shape == (spec.out_features, min(256, spec.out_features))


def test_guidance_is_repeatable() -> None:
    """The same tokens give the same to the last bit."""
    data = windows(CONFIG, count=5)
    first, second = measure(data), measure(data)
    for name, own in first.tokens.items():
        np.testing.assert_array_equal(own, second.tokens[name])
    for name, own in first.outputs.items():
        np.testing.assert_array_equal(own, second.outputs[name])


def test_a_linear_without_effect_weighs_all_alike() -> None:
    """Gradients of nothing but zeros give weights of 1, not of NaN."""
    np.testing.assert_array_equal(
        guidance.token_weights(np.zeros((2, 3), np.float32)), np.ones((2, 3), np.float32)
    )


def test_tokens_of_another_vocabulary_are_refused() -> None:
    """As by the calibration itself."""
    with pytest.raises(CalibrationError, match="token ids"):
        measure(CalibrationSet(np.full((2, 32), CONFIG.vocab_size), "", 64))


def test_weights_of_one_give_todays_codes() -> None:
    """Linears that read one input have moments of their own then, and the same codes."""
    plain, weighed = make(), make()
    plain.quantize()
    shape = windows(weighed.config).windows.shape
    ones = {spec.name: np.ones(shape, np.float32) for spec in all_linears(weighed.config)}
    weighed.quantize(guidance=Guidance(ones, {}))
    for name, codes in plain.codes.items():
        np.testing.assert_array_equal(codes, weighed.codes[name])


def test_weights_change_what_is_fitted() -> None:
    """A linear whose tokens are weighed has less error on those that weigh more."""
    weighed = make()
    shape = windows(weighed.config).windows.shape
    lopsided = np.full(shape, 1e-3, np.float32)
    lopsided[0] = 1.0
    weights = {spec.name: lopsided for spec in all_linears(weighed.config)}
    plain = make()
    few = weighed.quantize(guidance=Guidance(weights, {}), match_output=False).output_error
    all_alike = plain.quantize(match_output=False).output_error
    assert few["model.layers.0.self_attn.q_proj"] < all_alike["model.layers.0.self_attn.q_proj"]
