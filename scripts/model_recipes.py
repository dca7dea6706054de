"""Write recipes/MODEL.RECIPE.TARGET.toml: a published model's recipe for each Orin target.

    python scripts/model_recipes.py

Each repeats its model's general recipe and adds what `edgekit plan` expects of it.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.models.published import PUBLISHED, PublishedModel
from edgekit.pipeline.subject import open_subject
from edgekit.plan.hardware import ALIASES, find_machine
from edgekit.plan.planner import PlanOptions, make_plan
from edgekit.plan.roofline import DEFAULT_ENGINE
from edgekit.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


def render(model: PublishedModel, target: str) -> tuple[str, str]:
    """Return a recipe's name and text."""
    general = load_recipe(model.recipe)
    machine = find_machine(target)
    plan = make_plan(open_subject(model.hub_id, general), machine, PlanOptions(DEFAULT_ENGINE))
    rate = plan.rates[0].to_dict()
    base = model.hub_id.partition("/")[2]
    name = f"{base}.{model.recipe}.{target}"
    text = (RECIPES / f"{model.recipe}.toml").read_text(encoding="utf-8")
    tables = text[text.index("\n[") :].rstrip()
    head = [
        "# Written by scripts/model_recipes.py; a test holds it to what `edgekit plan` gives.",
        "schema_version = 1",
        f'name = "{name}"',
        f'description = "{base} on {machine.target.title}: {model.recipe}."',
        f'model = "{model.hub_id}"',
        f'target = "{target}"',
    ]
    expected = [
        "",
        "# Rates are projections, of one sequence with 256 tokens (docs/planning.md).",
        "[expected]",
        f"weights_bytes = {plan.fit.weights_bytes}",
        f"memory_bytes = {plan.fit.total_bytes}",
        f"decode_tokens_per_s = {rate['decode_tokens_per_s']}",
        f"prefill_tokens_per_s = {rate['prefill_tokens_per_s']}",
    ]
    return name, "\n".join([*head, tables, *expected]) + "\n"


def render_all() -> dict[str, str]:
    """Return every recipe's text by name."""
    return dict(render(model, target) for model in PUBLISHED for target in sorted(ALIASES))


if __name__ == "__main__":
    for name, text in render_all().items():
        (RECIPES / f"{name}.toml").write_text(text, encoding="utf-8")
        print(name)
