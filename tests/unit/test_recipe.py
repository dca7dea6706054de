"""Recipes: every shipped one loads, and every mistake is named."""

from __future__ import annotations

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
        (HEADER + "[graph]\nmax_context = -1", "must not be negative"),
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


def test_unknown_recipe_name_suggests_the_nearest() -> None:
    """A misspelt recipe name is answered with the nearest one."""
    with pytest.raises(RecipeError, match="Did you mean w4a16-g64"):
        load_recipe("w4a16_g64")


def test_unreadable_recipe_file(tmp_path: Path) -> None:
    """A recipe path that is not there is named."""
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(str(tmp_path / "none.toml"))
