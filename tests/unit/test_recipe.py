"""Recipes: every shipped one loads, and every mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekit.errors import RecipeError
from edgekit.recipe import DEFAULT_RECIPE, load_recipe, parse_recipe, shipped_recipes

HEADER = 'schema_version = 1\nname = "test"\n'


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipe_loads(name: str) -> None:
    """Every recipe that ships loads, is named as its file and says what it is for."""
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert 0 < recipe.acceptance.kl_divergence_nats_max <= 1


def test_default_recipe_needs_no_data() -> None:
    """The default recipe builds without calibration data, so without torch."""
    assert not load_recipe(DEFAULT_RECIPE).needs_calibration


def test_digest_depends_on_values_not_on_spelling() -> None:
    """Defaults written out give the same digest; another value another one."""
    spelled = parse_recipe(HEADER + '[quant]\nalgorithm = "rtn"\n', "a.toml")
    silent = parse_recipe(HEADER, "b.toml")
    other = parse_recipe(HEADER + '[quant]\nalgorithm = "gptq"\n', "c.toml")
    assert spelled.digest() == silent.digest() != other.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is not valid TOML"),
        ('name = "x"', "has schema_version None"),
        ("schema_version = 9", "has schema_version 9"),
        ("schema_version = 1", "lacks 'name'"),
        (HEADER + "[quant]\nalgoritm = 'rtn'", "[quant] has an unknown key 'algoritm'"),
        (HEADER + "[quant]\nalgoritm = 'rtn'", "Did you mean 'algorithm'?"),
        (HEADER + "[quant.linear]\ngroup_size = 48", "Use one of: 0, 32, 64, 128"),
        (HEADER + "[quant.embedding]\ndtype = 'int4'", "Use one of: float16, int8"),
        (HEADER + "[graph]\nmax_context = 'many'", "graph.max_context must be of type int"),
        (HEADER + "[graph]\nmax_context = true", "graph.max_context must be of type int"),
        (HEADER + "[graph]\nmax_context = -1", "graph.max_context must be at least 32"),
        (HEADER + "[graph]\nmax_context = 0", "at least 32 and at most 16777216, got 0"),
        (HEADER + "[graph]\nmax_context = 31", "at least 32"),
        (HEADER + "[graph]\nmax_sequences = 0", "graph.max_sequences must be at least 1"),
        (HEADER + "[calibration]\ntokens = 0", "calibration.tokens must be at least 1"),
        (HEADER + "[calibration]\nseed = -1", "calibration.seed must be at least 0"),
        (HEADER + "[calibration]\nseed = 9007199254740993", "at most 9007199254740992"),
        (HEADER + "[calibration]\nsegment_tokens = [1, 9007199254740993]", "must be [low, high]"),
        (HEADER + "[quant.linear]\ngroup_size = 64.0", "quant.linear.group_size is 64.0"),
        (HEADER + "[quant.linear]\ngroup_size = false", "quant.linear.group_size is False"),
        (HEADER + "[quant.linear]\ngroup_size = [64]", "quant.linear.group_size is [64]"),
        (HEADER + "[quant]\nmixed_bits_per_weight = nan", "at least 0 and at most 16, got nan"),
        (HEADER + "[quant]\nmixed_bits_per_weight = inf", "at least 0 and at most 16, got inf"),
        (HEADER + "[acceptance]\nkl_divergence_nats_max = nan", "got nan"),
        (HEADER + "[acceptance]\nkl_divergence_nats_max = inf", "got inf"),
        (HEADER + "[acceptance]\nkl_divergence_nats_max = 1" + "0" * 400, "must be at least 0"),
        (HEADER + "[acceptance]\ntop1_agreement_min = 5", "at least 0 and at most 1, got 5"),
        (HEADER + "[graph]\nmax_context = " + "9" * 5000, "is not valid TOML"),
        (HEADER + "description = " + "[" * 20_000, "nests its values too deeply"),
        (HEADER + "schema_versions = " + "[" * 90 + "]" * 90, "unknown key 'schema_versions'"),
        (HEADER + "description = " + "[" * 90 + "]" * 90, "description must be of type str"),
        (HEADER + "graph = 3", "[graph] must be a table"),
        (HEADER + "[quant]\noverride = 3", "must be an array of tables"),
        (HEADER + "[[quant.override]]\ndtype = 'int8'", "lacks 'pattern'"),
    ],
)
def test_mistake_is_named(text: str, message: str) -> None:
    """A wrong recipe is refused with a message that names the file and what is wrong."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "my.toml")
    assert message in str(caught.value)
    assert "my.toml" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_numbers_at_the_ends_of_their_ranges_are_read() -> None:
    """The ends of a range belong to it, and a whole number may stand for a float."""
    text = "[graph]\nmax_context = 32\nmax_sequences = 1\n[acceptance]\ntop1_agreement_min = 1\n"
    recipe = parse_recipe(HEADER + text, "a.toml")
    assert (recipe.graph.max_context, recipe.graph.max_sequences) == (32, 1)
    agreement = recipe.acceptance.top1_agreement_min
    assert (agreement, type(agreement)) == (1.0, float)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("w4a16_g64", "Did you mean w4a16-g64,"),
        ("w4a16", "Did you mean w4a16-g64, w4a16-g32 or w4a16-g128?"),
        ("W8A16", "Did you mean w8a16?"),
        ("mixed", "Did you mean mixed-4.3-gptq or mixed-4.3-gptq-segments?"),
        ("DeepSeek-R1-Distill-Qwen-7B", "Did you mean DeepSeek-R1-Distill-Qwen-7B.w4a16-g64.orin,"),
        ("zzz", "zzz'. `edgekit recipes` lists them"),
        ("", "''. `edgekit recipes` lists them"),
    ],
)
def test_unknown_recipe_name_suggests_the_nearest(name: str, meant: str) -> None:
    """A misspelt recipe name is answered with the nearest, a beginning with what begins so."""
    with pytest.raises(RecipeError, match=re.escape(meant)):
        load_recipe(name)


def test_unreadable_recipe_file(tmp_path: Path) -> None:
    """A recipe path that is not there is named."""
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(str(tmp_path / "none.toml"))
