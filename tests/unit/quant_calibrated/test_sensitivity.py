"""Mixed precision: the measure is the divergence it claims, the choice keeps its budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_config, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layerwise import MemoryTensor, windows

from edgekit.errors import RecipeError
from edgekit.evaluate.reference import ReferenceModel
from edgekit.models.config import all_linears
from edgekit.models.families import model_config_from_hf
from edgekit.quant import probes
from edgekit.quant.calibrate import CalibrationOptions
from edgekit.quant.calibration import CalibrationSet
from edgekit.quant.gptq import round_to_nearest, search_scales
from edgekit.quant.plan import bits_per_linear_weight
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.sensitivity import (
    LADDER,
    measure_sensitivity,
    mixed_plan,
    sensitivity_bytes,
)

SCHEME = QuantScheme(4, 32)
CONFIG = model_config_from_hf(make_config("qwen2"))
PLAN = {spec.name: SCHEME for spec in all_linears(CONFIG)}


class Steps:
    """Adds up what a stage advances by."""

    def __init__(self) -> None:
        self.done_bytes = 0
        self.items: list[str] = []

    def start(self, stage: str, total: int, unit: str = "bytes") -> None: ...

    def advance(self, done: int, item: str = "") -> None:
        self.done_bytes += done
        self.items.append(item)

    def finish(self, summary: str = "") -> None: ...


@dataclass(frozen=True)
class CountedTensor(MemoryTensor):
    """A weight in memory that notes how many rows are read of it."""

    read: dict[str, list[int]]

    def rows(self, start: int, stop: int) -> Any:
        self.read.setdefault(self.name, []).append(stop - start)
        return super().rows(start, stop)


class Source:
    """A random model; notes what is read of it."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.arrays = random_tensors(config or make_config("qwen2"))
        self.read: dict[str, list[int]] = {}

    def __call__(self, name: str) -> CountedTensor:
        return CountedTensor(name, self.arrays[name], self.read)


def log_probabilities(arrays: dict[str, Any], data: CalibrationSet) -> torch.Tensor:
    """Return the NumPy reference's log-probabilities of a model in memory."""
    model = ReferenceModel(CONFIG, lambda name: MemoryTensor(name, arrays[name]), threads=1)
    logits = np.concatenate(model.logits(list(data.windows)))
    return torch.log_softmax(torch.from_numpy(logits).double(), -1)


def test_sensitivity_is_the_divergence_of_that_linear_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Probes find what whole models with one quantized linear give, within their noise."""
    monkeypatch.setattr(probes, "STRIP_BYTES", 20_000)  # several strips of the head
    monkeypatch.setattr(probes, "BATCH_TOKENS", 128)
    source = Source()
    data = windows(CONFIG, count=64)
    data = CalibrationSet(data.windows[:, :27], "", 0)  # not a whole number of blocks
    plan: dict[str, QuantScheme | None] = {**PLAN, "model.layers.1.mlp.up_proj": None}
    options = CalibrationOptions(threads=1)
    got = measure_sensitivity(source, CONFIG, plan, data, options=options)
    assert list(got) == [name for name, scheme in plan.items() if scheme is not None]
    full = log_probabilities(source.arrays, data)
    ratios = {}
    for name in got:
        key = f"{name}.weight"
        weight = torch.from_numpy(source.arrays[key])
        rounded = round_to_nearest(weight, search_scales(weight, SCHEME), SCHEME)
        other = log_probabilities({**source.arrays, key: rounded.dequantize().numpy()}, data)
        ratios[name] = got[name] / float((full.exp() * (full - other)).sum(-1).mean())
    assert ratios.pop("lm_head") == pytest.approx(1, rel=0.02)
    logs = np.log(list(ratios.values()))
    assert abs(logs.mean()) < 0.07
    assert np.abs(logs).max() < 0.25


def test_passes_do_not_grow_with_the_layers() -> None:
    """Every weight of a layer is read twice, however many layers and linears there are."""
    for layers in (2, 5):
        raw = make_config("qwen2", layers=layers)
        config, source, steps = model_config_from_hf(raw), Source(raw), Steps()
        plan = {spec.name: SCHEME for spec in all_linears(config)}
        options = CalibrationOptions(threads=1)
        data = windows(config, count=2)
        measure_sensitivity(source, config, plan, data, options=options, progress=steps)
        for name, read in source.read.items():
            if name.startswith("model.layers."):
                assert read == 2 * [source.arrays[name].shape[0]]
        assert steps.done_bytes == sensitivity_bytes(source, config)
        assert f"layers.{layers - 1}.*, 2/2" in steps.items


def test_the_head_is_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the vocabulary, a strip of it is held at a time."""
    monkeypatch.setattr(probes, "STRIP_BYTES", 4 * 64 * 10)
    source = Source()
    got = measure_sensitivity(source, CONFIG, PLAN, windows(CONFIG, count=1))
    assert max(source.read["lm_head.weight"]) == 10
    assert sum(source.read["lm_head.weight"]) == 2 * 128
    assert got["lm_head"] > 0


def test_the_same_probes_come_every_time() -> None:
    """Two runs measure the same to the last bit; a dense head is not measured."""
    plan: dict[str, QuantScheme | None] = {**PLAN, "lm_head": None}
    first, second = (
        measure_sensitivity(Source(), CONFIG, plan, windows(CONFIG, count=2)) for _ in range(2)
    )
    assert first == second
    assert "lm_head" not in first


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(4.4, 9.0))
def test_the_budget_is_kept(seed: int, budget: float) -> None:
    """The mixed plan never exceeds its bits, and wastes less than one step."""
    rng = np.random.default_rng(seed)
    sensitivity = dict(zip(PLAN, rng.random(len(PLAN)), strict=True))
    mixed = mixed_plan(CONFIG, PLAN, sensitivity, budget)
    bits = bits_per_linear_weight(CONFIG, mixed)
    assert bits <= budget
    full = mixed_plan(CONFIG, PLAN, sensitivity, 100.0)
    assert {(s.bits, s.group_size) for s in full.values() if s} == {(8, 0)}


def test_a_larger_budget_diverges_less() -> None:
    """Predicted divergence falls with every bit given."""
    rng = np.random.default_rng(3)
    sensitivity = dict(zip(PLAN, rng.random(len(PLAN)), strict=True))
    relative = {(s.bits, s.group_size): value for s, value in LADDER}

    def predicted(budget: float) -> float:
        mixed = mixed_plan(CONFIG, PLAN, sensitivity, budget)
        quantized = {name: scheme for name, scheme in mixed.items() if scheme}
        return sum(
            float(sensitivity[name]) * relative[scheme.bits, scheme.group_size]
            for name, scheme in quantized.items()
        )

    values = [predicted(budget) for budget in (4.4, 4.8, 5.5, 7.0, 9.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_the_most_sensitive_is_raised_first() -> None:
    """With little room the 8 bits go to the linear of most divergence per bit."""
    sensitive = "model.layers.1.self_attn.k_proj"
    loud = mixed_plan(CONFIG, PLAN, dict.fromkeys(PLAN, 1e-6) | {sensitive: 1.0}, 4.6)
    quiet = mixed_plan(CONFIG, PLAN, dict.fromkeys(PLAN, 1.0) | {sensitive: 1e-6}, 4.6)
    assert loud[sensitive] == QuantScheme(8, 0)
    assert quiet[sensitive] == QuantScheme(4, 64)


def test_dense_and_int8_linears_are_kept() -> None:
    """What the recipe fixed beforehand does not move."""
    plan: dict[str, QuantScheme | None] = {**PLAN, "lm_head": QuantScheme(8, 0)}
    plan["model.layers.0.mlp.up_proj"] = None
    sensitivity = dict.fromkeys(PLAN, 1.0)
    del sensitivity["model.layers.0.mlp.up_proj"]
    mixed = mixed_plan(CONFIG, plan, sensitivity, 7.0)
    assert mixed["lm_head"] == plan["lm_head"]
    assert mixed["model.layers.0.mlp.up_proj"] is None


def test_a_budget_below_the_plan_is_refused() -> None:
    """A budget that the smallest plan already exceeds is an error of the recipe."""
    with pytest.raises(RecipeError, match="bits per weight at least"):
        mixed_plan(CONFIG, PLAN, dict.fromkeys(PLAN, 1.0), 4.1)
