"""A recipe for each published model and Orin target: complete, as planned now, taken by default."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edgekit.errors import RecipeError
from edgekit.models.published import PUBLISHED
from edgekit.recipe import (
    DEFAULT_RECIPE,
    default_recipe,
    load_recipe,
    parse_recipe,
    shipped_recipes,
)

ROOT = Path(__file__).parents[2]
TARGETS = ("orin", "orin-32gb", "orin-jp62")


def test_every_recipe_is_what_the_plan_expects_now() -> None:
    """The committed files are what scripts/model_recipes.py writes, neither more nor fewer."""
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "scripts/model_recipes.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    wanted = script.render_all()
    assert len(wanted) == len(PUBLISHED) * len(TARGETS)
    files = {name: path for name, path in shipped_recipes().items() if load_recipe(name).model}
    assert files.keys() == wanted.keys()
    for name, path in files.items():
        assert path.read_text() == wanted[name], f"{name}: run scripts/model_recipes.py"


def test_every_recipe_builds_what_the_general_one_does() -> None:
    """But for its name and its text: only what is expected of it is its own."""
    own = ("name", "description")
    general = load_recipe(DEFAULT_RECIPE).resolved()
    for name in shipped_recipes():
        recipe = load_recipe(name)
        if recipe.model:
            resolved = recipe.resolved()
            assert {k: v for k, v in resolved.items() if k not in own} == {
                k: v for k, v in general.items() if k not in own
            }
            assert name == f"{recipe.model.split('/')[1]}.{DEFAULT_RECIPE}.{recipe.target}"
            assert 0 < recipe.expected.weights_bytes < recipe.expected.memory_bytes
            assert recipe.expected.decode_tokens_per_s > 10


def test_a_published_model_takes_its_own_recipe() -> None:
    """Others, and the target cpu, keep the general one."""
    name = "DeepSeek-R1-Distill-Qwen-7B"
    assert default_recipe(name, "orin") == f"{name}.{DEFAULT_RECIPE}.orin"
    assert default_recipe(name, "cpu") == DEFAULT_RECIPE
    assert default_recipe("my-model", "orin") == DEFAULT_RECIPE


def test_what_is_expected_decides_no_byte() -> None:
    """The digest is that of what is built; a misspelt expectation is an error all the same."""
    header = 'schema_version = 1\nname = "test"\n'
    bare = parse_recipe(header, "a.toml")
    told = parse_recipe(header + 'target = "orin"\n[expected]\nweights_bytes = 5\n', "b.toml")
    assert told.expected.weights_bytes == 5
    assert told.digest() == bare.digest()
    with pytest.raises(RecipeError, match="Did you mean 'weights_bytes'"):
        parse_recipe(header + "[expected]\nweight_bytes = 5\n", "c.toml")
    with pytest.raises(RecipeError, match=r"expected.memory_bytes must be at least 0"):
        parse_recipe(header + "[expected]\nmemory_bytes = -1\n", "d.toml")
