"""``edgekit recipes``: the recipes that ship, and the published models with their defaults."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from edgekit.cli.render import console, grid_table, print_json
from edgekit.recipe import Recipe


@click.command("recipes")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(*, as_json: bool) -> None:
    """List the recipes that ship with edgekit and the published models it builds."""
    from edgekit.models.published import PUBLISHED  # noqa: PLC0415
    from edgekit.recipe import DEFAULT_RECIPE, load_recipe, shipped_recipes  # noqa: PLC0415

    recipes = sorted(
        (load_recipe(name) for name in shipped_recipes()),
        key=lambda r: (bool(r.model), r.needs_calibration, r.name != DEFAULT_RECIPE, r.name),
    )
    if as_json:
        document: dict[str, Any] = {
            "default": DEFAULT_RECIPE,
            "recipes": [_document(r) for r in recipes],
            "models": [model.to_dict() for model in PUBLISHED],
        }
        print_json(document)
        return
    out = console()
    general = [(r.name, r.description) for r in recipes if not r.model]
    out.print(grid_table(("recipe", "what it does"), general))
    rows = [
        (
            model.hub_id.split("/")[1],
            model.family,
            f"{model.parameters / 1e9:.2f} B",
            f"{model.context // 1024}k",
            f"{model.cache_bytes_per_token / 1000:.0f} kB",
            model.recipe,
        )
        for model in PUBLISHED
    ]
    columns = ("published model", "family", "size", "context", "cache", "recipe")
    out.print()
    out.print(grid_table(columns, rows, numbers=("size", "context", "cache")))
    out.print(
        "\nEach published model has one for each Orin target, NAME.RECIPE.TARGET, with the size "
        "and rate to expect: build takes it by default",
        style="dim",
    )
    out.print("\ncache: float16 keys and values of one token", style="dim")


def _document(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's JSON form, what it was written for included where that is stated."""
    data = {**recipe.resolved(), "sha256": recipe.digest()}
    if recipe.model:
        data |= {"model": recipe.model, "target": recipe.target}
        data["expected"] = asdict(recipe.expected)
    return data
