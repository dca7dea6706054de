"""Guidance: the products are those of the gradients, and rounding heeds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_layerwise import divergence, make, windows
from test_sensitivity import CONFIG, Source, Steps

from edgekit.errors import CalibrationError
from edgekit.models.config import all_linears
from edgekit.quant import guidance, output_gradients
from edgekit.quant.calibrate import CalibrationOptions
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.decoder_layer import DecoderLayer, LayerTensors, linear
from edgekit.quant.guidance import guidance_bytes, measure_guidance
from edgekit.quant.layer_reader import LayerReader


def measure(data: CalibrationSet) -> dict[str, Any]:
    """Return the guidance of a random model."""
    return measure_guidance(Source(), CONFIG, data, options=CalibrationOptions(threads=1))


def brute_force(data: CalibrationSet, name: str) -> torch.Tensor:
    """Return what is expected of the sum of g gᵀ at a linear's output.

    It is that of J F Jᵀ, J being the logits' derivative of all tokens after it: a backward pass for
    every logit of every token.
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
    width = seen[name].shape[-1]
    products = torch.zeros(width, width)
    for token in range(data.windows.shape[1]):
        for word in range(CONFIG.vocab_size):  # F = B Bᵀ, column by column
            column = -(root[:, token] ** 2) * root[:, token, word, None]
            column[:, word] += root[:, token, word]
            scalar = (logits[:, token] * column).sum()
            (gradient,) = torch.autograd.grad(scalar, seen[name], retain_graph=True)
            flat = gradient.flatten(0, 1)
            products += flat.t() @ flat
    return products


def test_products_are_those_of_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many probes they are what brute force finds, block by block of the output channels."""
    monkeypatch.setattr(guidance, "PROBES", 4000)
    monkeypatch.setattr(output_gradients, "OUTPUT_BLOCK", 48)
    data = windows(CONFIG, count=1)
    data = CalibrationSet(data.windows[:, :6], "", 6)
    got = measure(data)
    for short in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"):
        name = f"model.layers.0.{short}"
        products = brute_force(data, name).numpy()
        rows, found = len(products), got[name] / 4000
        size = min(48, rows)
        assert found.shape == (rows, size)
        for start in range(0, rows, size):
            part = slice(start, min(start + size, rows))
            width = part.stop - start
            np.testing.assert_allclose(
                found[part, :width], products[part, part], atol=0.1 * products.max()
            )
            assert not found[part, width:].any()
    assert "lm_head" not in got


def test_chunks_add_up_and_progress_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many windows go through together, the sums are over the same tokens."""
    data, steps, source = windows(CONFIG, count=9), Steps(), Source()
    found = measure_guidance(source, CONFIG, data, progress=steps)
    assert list(found) == [spec.name for spec in all_linears(CONFIG)[:-1]]
    for spec in all_linears(CONFIG)[:-1]:
        assert found[spec.name].shape == (spec.out_features, min(256, spec.out_features))
        assert found[spec.name].dtype == np.float32
    assert steps.done_bytes == guidance_bytes(source, CONFIG, data)
    monkeypatch.setattr(output_gradients, "BATCH_TOKENS", 64)
    again = measure(data)
    for name, product in found.items():
        np.testing.assert_allclose(again[name], product, rtol=1e-3, atol=1e-5 * product.max())


def test_the_sample_is_bounded_and_from_all_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than are needed are thinned evenly, and go through in chunks."""
    monkeypatch.setattr(guidance, "GUIDANCE_TOKENS", 96)
    seen = []

    def gradients(reader: LayerReader, probes: int) -> Iterator[tuple[str, torch.Tensor]]:
        del probes
        seen.append(reader.calibration.windows)
        for spec in all_linears(CONFIG):
            yield spec.name, torch.ones(1, 1)

    monkeypatch.setattr(output_gradients, "output_gradients", gradients)
    data = windows(CONFIG, count=9)
    found = measure(data)
    assert sum(map(len, seen)) <= 3
    np.testing.assert_array_equal(np.concatenate(seen), data.windows[::3])
    assert found["model.layers.0.self_attn.q_proj"] == len(seen)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((781, 64), 32768),
        ((520, 64), 32768),
        ((2048, 64), 32768),
        ((9, 64), 576),
        ((3, 131072), 32768),
    ],
)
def test_the_sample_is_as_large_as_it_may_be(shape: tuple[int, int], tokens: int) -> None:
    """Whatever the number of windows and their length, no fewer tokens and no more."""
    numbers = np.arange(shape[0] * shape[1]).reshape(shape)
    chunks = guidance._chunks(CONFIG, CalibrationSet(numbers, "", 0))
    taken = np.concatenate([chunk.windows for chunk in chunks])
    assert taken.size == tokens
    starts = taken[:, 0] // shape[1]
    assert (np.diff(starts) > 0).all()
    assert starts[-1] >= shape[0] - 1 - shape[0] // len(starts)  # from all over


def test_guidance_is_repeatable() -> None:
    """The same tokens give the same to the last bit."""
    data = windows(CONFIG, count=5)
    first, second = measure(data), measure(data)
    for name, product in first.items():
        np.testing.assert_array_equal(product, second[name])


def test_tokens_of_another_vocabulary_are_refused() -> None:
    """As by the calibration itself."""
    with pytest.raises(CalibrationError, match="token ids"):
        measure(CalibrationSet(np.full((2, 32), CONFIG.vocab_size), "", 64))


def test_guided_codes_diverge_less() -> None:
    """On tokens not seen, the codes chosen under the gradients' moments are the better ones."""
    plain, guided = make(), make()
    plain.quantize()
    guided.quantize(guidance=measure_guidance(guided.open, guided.config, windows(guided.config)))
    for spec in all_linears(plain.config)[:3]:  # one input: the same moments, other codes
        assert (plain.codes[spec.name] != guided.codes[spec.name]).any()
    assert divergence(guided, guided.quantized()) < divergence(plain, plain.quantized())
