"""Plans: memory as the build counts it, cost by hand, what a reader must know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import CheckpointError, EdgekitError, UnsupportedModelError
from edgekit.models.families import model_config_from_hf
from edgekit.models.published import PUBLISHED
from edgekit.models.published_shapes import find_shape
from edgekit.pipeline.subject import open_subject
from edgekit.plan.cost import CostAssumptions, assume
from edgekit.plan.hardware import find_machine, machines
from edgekit.plan.memory import require_fit
from edgekit.plan.planner import Plan, PlanOptions, make_plan
from edgekit.recipe import load_recipe

CONFIGS = Path(__file__).parents[2] / "data/configs"
OPTIONS = PlanOptions("edge-llm")


def plan(
    model: str, machine: str, recipe: str = "w4a16-g64", options: PlanOptions = OPTIONS
) -> Plan:
    return make_plan(open_subject(model, load_recipe(recipe)), find_machine(machine), options)


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.hub_id.split("/")[1])
def test_shapes_are_those_of_the_published_configurations(model: object) -> None:
    """A name is planned as its config.json would be."""
    hub_id: str = model.hub_id  # type: ignore[attr-defined]  # a PublishedModel
    name = hub_id.split("/")[1]
    shape = find_shape(hub_id)
    assert find_shape(name) == shape
    file = CONFIGS / f"{'deepseek-llm-7b-base' if name == 'deepseek-math-7b-base' else name}.json"
    config = model_config_from_hf(json.loads(file.read_text()))
    same = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
            "num_attention_heads", "num_key_value_heads", "vocab_size", "tie_word_embeddings",
            "max_position_embeddings", "qkv_bias", "o_bias", "mlp_bias", "qk_norm")  # fmt: skip
    for field in same:
        assert getattr(shape, field) == getattr(config, field), field


@pytest.mark.parametrize("model", PUBLISHED, ids=lambda model: model.hub_id.split("/")[1])
def test_every_published_model_is_planned_on_every_machine(model: object) -> None:
    """Rates fall with context, grow with batch; a step never beats the memory's peak."""
    hub_id: str = model.hub_id  # type: ignore[attr-defined]  # a PublishedModel
    for machine in machines().values():
        made = make_plan(open_subject(hub_id, load_recipe("w4a16-g64")), machine, OPTIONS)
        first = made.rates[0]
        assert (first.batch, first.context) == (1, 256)
        by_batch = [r.decode_tokens_per_s for r in made.rates if r.context == 256]
        assert by_batch == sorted(by_batch)
        by_context = [r.decode_tokens_per_s for r in made.rates if r.batch == 1]
        assert by_context == sorted(by_context, reverse=True)
        peak = machine.bandwidth_bytes_per_s / made.work.decode_bytes(1, 256)
        assert first.decode_tokens_per_s < peak


def test_what_does_not_fit_is_said_as_the_build_says_it() -> None:
    """A plan's reason and remedy are those of the error that stops a build."""
    made = plan("DeepSeek-R1-0528-Qwen3-8B", "orin-nx-16gb", "float16")
    assert not made.fits
    with pytest.raises(UnsupportedModelError) as caught:
        require_fit(made.fit, made.machine.target)
    data = made.to_dict()
    assert (data["fits"], data["reason"]) == (False, caught.value.message)
    assert data["remedy"] == caught.value.remedy
    assert plan("DeepSeek-R1-0528-Qwen3-8B", "orin", "float16").fits


def test_models_of_13_b_are_refused_as_by_the_build() -> None:
    """The sibling of 14 B is refused by name and by its config.json, in the same words."""
    with pytest.raises(UnsupportedModelError, match=r"14\.8 B parameters; edgekit builds models"):
        find_shape("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B")
    data = json.loads((CONFIGS / "DeepSeek-R1-Distill-Qwen-14B.json").read_text())
    with pytest.raises(UnsupportedModelError, match=r"14\.8 B parameters; edgekit builds models"):
        model_config_from_hf(data)
    with pytest.raises(
        CheckpointError, match="Did you mean deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    ):
        find_shape("DeepSeek-R1-Distill-Qwen-7")


def test_cost_is_hardware_and_energy() -> None:
    """A price over a year and 100 W drawn twice at 0.36 USD/kWh, for tokens half the time."""
    cost = CostAssumptions("edge", 8766 * 3.6, 0.5, 100, 2.0, 1.0, 0.36)
    hardware, energy = 8766 * 3.6 / (8766 * 3600), 100 * 2 * 0.36 / 3.6e6
    assert cost.usd_per_million_tokens(10) == pytest.approx((hardware + energy) / 5 * 1e6)


def test_assumptions_are_defaults_that_options_replace() -> None:
    """Scenario, price, power: each is the machine's unless given."""
    orin, cloud = assume(find_machine("orin")), assume(find_machine("h100-80gb"))
    assert (orin.scenario, orin.price_usd, orin.power_w) == ("edge", 2500, 60)
    assert (cloud.scenario, cloud.price_usd, cloud.utilization) == ("cloud", 30000, 0.6)
    assert assume(find_machine("orin").in_mode("30W")).power_w == 30
    given = assume(find_machine("orin"), "lab", price_usd=1.0, utilization=None)
    assert (given.scenario, given.price_usd, given.utilization) == ("lab", 1, 0.3)
    with pytest.raises(EdgekitError, match="edge, lab, cloud"):
        assume(find_machine("orin"), "moon")


def test_energy_is_the_budget_over_the_rate() -> None:
    """Joules a token are an upper bound by the mode's budget."""
    made = plan("DeepSeek-R1-Distill-Qwen-7B", "orin")
    for rate in made.rates:
        assert rate.joules_per_token == pytest.approx(60 / rate.decode_tokens_per_s)


def test_a_reader_is_warned() -> None:
    """Projection, borrowed parameters, reduced clocks, and engines the device cannot build."""

    def warnings(machine: str, mode: str = "") -> str:
        found = find_machine(machine)
        found = found.in_mode(mode) if mode else found
        subject = open_subject("DeepSeek-R1-0528-Qwen3-8B", load_recipe("w4a16-g64"))
        return " ".join(make_plan(subject, found, OPTIONS).warnings)

    assert "nothing was run" in warnings("orin")
    assert "below full clocks" not in warnings("orin")
    assert "below full clocks" in warnings("orin", "30W")
    assert "no rate of edge-llm on Jetson AGX Orin 32GB" in warnings("orin-32gb")
    assert "building the engine may take 32.76 GB" in warnings("orin-32gb")
    assert "machine of comparison" in warnings("a100-80gb")
    assert "takes 4 bits in groups of 128 only" in warnings("orin")
    assert "groups of 128 only" not in warnings("a100-80gb")
    mixed = plan("DeepSeek-R1-Distill-Qwen-7B", "orin", "mixed-4.3-gptq")
    assert any("4.3 bits" in note for note in mixed.warnings)
