"""Plans: the last matching rule wins, and nothing is decided silently."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.errors import RecipeError
from edgekit.models.config import ModelConfig, all_linears
from edgekit.quant.plan import Rule, bits_per_linear_weight, plan_quantization
from edgekit.quant.scheme import QuantScheme

CONFIG = ModelConfig(
    model_type="qwen2",
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    vocab_size=96,
    max_position_embeddings=128,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    qkv_bias=True,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
)
W4 = QuantScheme(4, 32)
W8 = QuantScheme(8, 0)
EVERYTHING = Rule("*", W4, "everything")


def test_last_match_wins() -> None:
    """A later rule overrides an earlier one, for the linears it matches only."""
    rules = [EVERYTHING, Rule("*.down_proj", W8, "sensitive"), Rule("lm_head", None, "head")]
    schemes = plan_quantization(CONFIG, rules)
    assert list(schemes) == [linear.name for linear in all_linears(CONFIG)]
    assert schemes["model.layers.1.mlp.down_proj"] == W8
    assert schemes["model.layers.1.mlp.up_proj"] == W4
    assert schemes["lm_head"] is None


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    """A misspelt pattern is refused, with its reason and an example of a name."""
    rules = [EVERYTHING, Rule("*.donw_proj", W8, "override 1")]
    with pytest.raises(RecipeError, match=r"override 1: pattern '\*\.donw_proj' matches no linear"):
        plan_quantization(CONFIG, rules)


def test_every_linear_needs_a_rule() -> None:
    """A linear that no rule names is an error, not a default."""
    with pytest.raises(RecipeError, match="no rule of the recipe matches lm_head"):
        plan_quantization(CONFIG, [Rule("model.layers.*", W4, "layers")])


def test_group_sizes_that_do_not_divide() -> None:
    """The error names the linear, its channels and the largest group size that would do."""
    with pytest.raises(RecipeError, match=r"down_proj has 160 input channels.*group size of 32"):
        plan_quantization(CONFIG, [Rule("*", QuantScheme(4, 64), "everything")])
    odd = replace(CONFIG, intermediate_size=100)
    with pytest.raises(RecipeError, match=r"has 100 input channels.*one scale per channel"):
        plan_quantization(odd, [EVERYTHING])


def test_bits_per_linear_weight_counts_scales_and_head() -> None:
    """Group 32 takes half a bit of scales; a float16 head counts by its share of the weights."""
    assert bits_per_linear_weight(CONFIG, plan_quantization(CONFIG, [EVERYTHING])) == 4.5
    mixed = plan_quantization(CONFIG, [EVERYTHING, Rule("lm_head", None, "head")])
    sizes = {x.name: x.in_features * x.out_features for x in all_linears(CONFIG)}
    total, head = sum(sizes.values()), sizes["lm_head"]
    expected = (4.5 * (total - head) + 16 * head) / total
    assert bits_per_linear_weight(CONFIG, mixed) == pytest.approx(expected)
