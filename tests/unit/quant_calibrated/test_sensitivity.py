"""Mixed precision: the measure is the divergence it claims, the choice keeps its budget."""

from __future__ import annotations

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
from edgekit.quant.calibrate import CalibrationOptions
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


def test_sensitivity_is_the_divergence_of_that_linear_alone() -> None:
    """Streams born along the way give what whole models with one quantized linear give."""
    arrays = random_tensors(make_config("qwen2"))
    data = windows(CONFIG, count=2)
    plan: dict[str, QuantScheme | None] = {**PLAN, "model.layers.1.mlp.up_proj": None}
    steps = Steps()

    def opened(name: str) -> MemoryTensor:
        return MemoryTensor(name, arrays[name])

    options = CalibrationOptions(threads=1)
    got = measure_sensitivity(opened, CONFIG, plan, data, options=options, progress=steps)
    assert steps.done_bytes == sensitivity_bytes(opened, CONFIG, plan)
    assert any("mlp.down_proj" in item for item in steps.items)
    assert set(got) == set(PLAN) - {"model.layers.1.mlp.up_proj"}

    def log_probabilities(source: dict[str, Any]) -> torch.Tensor:
        model = ReferenceModel(CONFIG, lambda name: MemoryTensor(name, source[name]), threads=1)
        logits = np.concatenate(model.logits(list(data.windows)))
        return torch.log_softmax(torch.from_numpy(logits).double(), -1)

    full = log_probabilities(arrays)
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        weight = torch.from_numpy(arrays[f"{name}.weight"])
        rounded = round_to_nearest(weight, search_scales(weight, SCHEME), SCHEME)
        other = log_probabilities({**arrays, f"{name}.weight": rounded.dequantize().numpy()})
        want = float((full.exp() * (full - other)).sum(-1).mean())
        assert got[name] == pytest.approx(want, rel=0.02)


@settings(max_examples=30, deadline=None)
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
