"""The streaming pass: right forward, every linear once, better than rounding, repeatable."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_config, random_tensors

from edgekit.errors import CalibrationError, MissingExtraError, QuantizationError
from edgekit.evaluate.reference import ReferenceModel
from edgekit.models.config import ModelConfig, all_linears
from edgekit.models.families import model_config_from_hf
from edgekit.quant import layerwise
from edgekit.quant.calibrate import CalibrationOptions, CalibrationReport, calibrate_model
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.decoder_layer import DecoderLayer
from edgekit.quant.gptq import round_to_nearest, search_scales
from edgekit.quant.guidance import Guidance
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import WeightError

Array = np.ndarray[Any, Any]
SCHEME = QuantScheme(4, 32, "mse", "gptq")


@dataclass(frozen=True)
class MemoryTensor:
    """A float32 weight in memory."""

    name: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def stored_bytes(self) -> int:
        return self.array.nbytes

    def rows(self, start: int, stop: int) -> Array:
        return self.array[start:stop].copy()


@dataclass
class Model:
    """A random model and what calibration emitted for it."""

    config: ModelConfig
    arrays: dict[str, Array]
    codes: dict[str, Array] = field(default_factory=dict)
    scales: dict[str, Array] = field(default_factory=dict)
    errors: dict[str, WeightError] = field(default_factory=dict)
    dense: dict[str, Array] = field(default_factory=dict)

    def open(self, name: str) -> MemoryTensor:
        return MemoryTensor(name, self.arrays[name])

    def quantize(
        self,
        plan: Mapping[str, QuantScheme | None] | None = None,
        exponents: Mapping[str, int] | None = None,
        guidance: Guidance | None = None,
        **options: Any,
    ) -> CalibrationReport:
        def emit(name: str, codes: Array, scales: Array, error: WeightError) -> None:
            assert name not in self.codes
            self.codes[name], self.scales[name], self.errors[name] = codes, scales, error

        def emit_dense(name: str, values: Array) -> None:
            self.dense[name] = values

        schemes = plan or {spec.name: SCHEME for spec in all_linears(self.config)}
        return calibrate_model(
            self.open,
            self.config,
            schemes,
            windows(self.config),
            emit=emit,
            emit_dense=emit_dense,
            options=CalibrationOptions(threads=1, **options),
            exponents=exponents,
            guidance=guidance,
        )

    def quantized(self) -> dict[str, Array]:
        """Return the checkpoint an engine would compute with."""
        arrays = {**self.arrays, **self.dense}
        for name, codes in self.codes.items():
            scales = self.scales[name]
            weight = codes * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
            arrays[f"{name}.weight"] = weight.astype(np.float32)
        return arrays


def make(family: str = "qwen2", **options: Any) -> Model:
    config = make_config(family, **options)
    return Model(model_config_from_hf(config), random_tensors(config))


def windows(config: ModelConfig, seed: int = 0, count: int = 24) -> CalibrationSet:
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (count, 32))
    return CalibrationSet(ids, "digest", ids.size)


def divergence(model: Model, arrays: dict[str, Array]) -> float:
    """Mean KL(full || quantized) on tokens that calibration did not see."""
    ids = list(windows(model.config, seed=9, count=8).windows)

    def log_probabilities(source: dict[str, Array]) -> torch.Tensor:
        def opened(name: str) -> MemoryTensor:
            return MemoryTensor(name, source[name])

        logits = ReferenceModel(model.config, opened, threads=1).logits(ids)
        return torch.log_softmax(torch.from_numpy(np.concatenate(logits)).double(), -1)

    full, other = log_probabilities(model.arrays), log_probabilities(arrays)
    return float((full.exp() * (full - other)).sum(-1).mean())


@pytest.mark.parametrize(
    ("family", "options"),
    [("qwen2", {}), ("llama", {"kv_heads": 4}), ("qwen3", {"head_dim": 32, "kv_heads": 1})],
)
def test_forward_equals_the_reference(family: str, options: dict[str, Any]) -> None:
    """The torch layers reproduce the NumPy reference on every family."""
    model = make(family, **options)
    data = windows(model.config, count=3)
    layer = DecoderLayer(model.config, 32, torch.device("cpu"))
    tensors = {name: torch.from_numpy(array) for name, array in model.arrays.items()}
    x = tensors["model.embed_tokens.weight"][torch.from_numpy(data.windows)]
    for index in range(model.config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        x = layer(own, x)
    logits = layer.norm(tensors["model.norm.weight"], x) @ tensors["lm_head.weight"].t()
    want = ReferenceModel(model.config, model.open, threads=1).logits(list(data.windows))
    np.testing.assert_allclose(logits.numpy(), np.stack(want), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "awq-gptq"])
def test_every_linear_is_emitted_once_in_order(algorithm: str) -> None:
    """Each planned linear comes with codes, scales and an error, the LM head last."""
    model = make()
    report = model.quantize(algorithm=algorithm)
    assert list(model.codes) == [spec.name for spec in all_linears(model.config)]
    for spec in all_linears(model.config):
        assert model.codes[spec.name].shape == (spec.out_features, spec.in_features)
        assert model.scales[spec.name].shape == (spec.out_features, spec.in_features // 32)
        assert model.scales[spec.name].dtype == np.float32
        assert 0 < model.errors[spec.name].relative_rmse < 0.2
        assert 0 < report.output_error[spec.name] < 0.05
    assert report.tokens == 24 * 32
    assert bool(model.dense) == (algorithm != "gptq")


def test_calibrated_is_better_than_rounding() -> None:
    """On tokens not seen, GPTQ diverges less than rounding, and matching outputs less again."""
    nearest = make()
    for spec in all_linears(nearest.config):
        weight = torch.from_numpy(nearest.arrays[spec.weight_key])
        rounded = round_to_nearest(weight, search_scales(weight, SCHEME), SCHEME)
        nearest.codes[spec.name] = rounded.codes.numpy()
        nearest.scales[spec.name] = rounded.scales.numpy()
    plain, matched = make(), make()
    plain.quantize(match_output=False)
    matched.quantize()
    rtn, gptq, best = (divergence(m, m.quantized()) for m in (nearest, plain, matched))
    assert gptq < 0.97 * rtn
    assert best < 0.97 * gptq


def test_unplanned_linears_stay_dense() -> None:
    """A linear without a scheme is not emitted and int8 ones keep their own range."""
    model = make()
    plan: dict[str, QuantScheme | None] = {x.name: SCHEME for x in all_linears(model.config)}
    plan["lm_head"] = None
    plan["model.layers.0.mlp.down_proj"] = QuantScheme(8, 0, "mse", "gptq")
    model.quantize(plan, match_output=False)
    assert "lm_head" not in model.codes
    assert np.abs(model.codes["model.layers.0.mlp.down_proj"]).max() > 100
    assert model.errors["model.layers.0.mlp.down_proj"].relative_rmse < 0.02


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "awq-gptq"])
def test_scales_are_chosen_on_the_grid_they_are_stored_on(algorithm: str) -> None:
    """Under an exponent that makes them subnormal, float16 holds the emitted scales exactly."""
    model, plain = make(), make()
    loud = {"model.layers.0.mlp.down_proj": -14, "model.layers.1.self_attn.q_proj": -12}
    model.quantize(exponents=loud, algorithm=algorithm)
    plain.quantize(algorithm=algorithm)
    for name, scales in model.scales.items():
        stored = np.ldexp(scales, loud.get(name, 0)).astype(np.float16)
        np.testing.assert_array_equal(
            np.ldexp(stored.astype(np.float32), -loud.get(name, 0)), scales
        )
        assert (stored < np.finfo(np.float16).tiny).any() == (name in loud)
    first = "model.layers.0.self_attn.o_proj"  # before any of them
    np.testing.assert_array_equal(model.codes[first], plain.codes[first])


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "awq-gptq"])
def test_errors_are_those_of_the_checkpoints_weight(algorithm: str) -> None:
    """Where AWQ folded scales into a weight, its error is measured with them taken out again."""
    model, layer = make(), "model.layers.1."
    model.quantize(algorithm=algorithm)
    quantized = model.quantized()

    def ratio(name: str) -> Array:
        """Return what a norm or bias was divided by."""
        name = layer + name if name != "model.norm.weight" else name
        return np.asarray(model.arrays[name] / quantized[name])

    attention, mlp = ratio("input_layernorm.weight"), ratio("post_attention_layernorm.weight")
    values = ratio("self_attn.v_proj.bias")
    shared = values.reshape(2, 1, -1).repeat(2, axis=1).reshape(-1)  # two query heads each
    inputs = {
        f"{layer}self_attn.q_proj": attention,
        f"{layer}self_attn.v_proj": attention / values[:, None],
        f"{layer}self_attn.o_proj": shared,
        f"{layer}mlp.gate_proj": mlp,
        "lm_head": ratio("model.norm.weight"),
    }
    for name, scale in inputs.items():
        original = model.arrays[f"{name}.weight"]
        change = quantized[f"{name}.weight"] / scale - original
        error = model.errors[name]
        assert error.squared_error == pytest.approx(float(np.square(change).sum()), rel=1e-3)
        assert error.squared_weight == pytest.approx(float(np.square(original).sum()), rel=1e-4)
        assert error.max_abs_error == pytest.approx(float(np.abs(change).max()), rel=1e-3)
        assert algorithm == "gptq" or np.abs(scale / scale.flat[0] - 1).max() > 0.01
    for name, error in model.errors.items():
        power = float(np.square(model.arrays[f"{name}.weight"]).sum())
        assert error.squared_weight == pytest.approx(power, rel=1e-4)


def test_awq_rounds_to_the_stored_scales() -> None:
    """The codes of a folded weight are the nearest for the scales that are left of it."""
    model, name = make(), "model.layers.0.self_attn.q_proj"
    model.quantize(exponents={name: -13}, algorithm="awq")
    norm = "model.layers.0.input_layernorm.weight"
    folded = model.arrays[f"{name}.weight"] * (model.arrays[norm] / model.dense[norm])
    step = np.repeat(model.scales[name], 32, axis=1)
    nearest = np.clip(np.rint(folded / step), -8, 7)
    assert (nearest == model.codes[name]).mean() > 0.999  # ties aside


def test_two_runs_give_the_same_codes() -> None:
    """The same data, machine and thread count give the same bytes."""
    first, second = make(), make()
    first.quantize(algorithm="awq-gptq")
    second.quantize(algorithm="awq-gptq")
    for name, codes in first.codes.items():
        np.testing.assert_array_equal(codes, second.codes[name])
        np.testing.assert_array_equal(first.scales[name], second.scales[name])
    assert not torch.are_deterministic_algorithms_enabled()


def test_inputs_that_do_not_fit_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many inputs are kept between their two uses changes no code."""
    kept, again = make(), make()
    kept.quantize(batch_tokens=128)
    monkeypatch.setattr(layerwise, "KEPT_INPUT_BYTES", 100_000)
    again.quantize(batch_tokens=128)
    for name, codes in kept.codes.items():
        np.testing.assert_array_equal(codes, again.codes[name])


def test_tied_embeddings_serve_as_head() -> None:
    """A tied LM head is quantized from the embedding's tensor, which itself is not emitted."""
    model = make("llama", tied=True)
    model.quantize()
    assert model.codes["lm_head"].shape == (128, 64)


def test_tokens_of_another_vocabulary_are_refused() -> None:
    """Token ids beyond the embedding are an error, not an index failure."""
    model = make()
    model.arrays["model.embed_tokens.weight"] = model.arrays["model.embed_tokens.weight"][:100]
    model.config = model_config_from_hf(make_config(vocab=100))
    ids = np.full((2, 32), 100)
    with pytest.raises(CalibrationError, match="token ids up to 100"):
        calibrate_model(
            model.open,
            model.config,
            {x.name: SCHEME for x in all_linears(model.config)},
            CalibrationSet(ids, "", ids.size),
            emit=lambda *_: None,
            emit_dense=lambda *_: None,
        )


@pytest.mark.parametrize("device", ["tpu-nine", "meta", "cuda:77"])
def test_unknown_devices_are_refused(device: str) -> None:
    """A device torch cannot use is named before any work."""
    with pytest.raises(QuantizationError, match=device):
        make().quantize(device=device)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch the error says which extra to install."""
    real = builtins.__import__

    def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(MissingExtraError, match="calibrate"):
        make().quantize()
