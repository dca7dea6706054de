"""``edgekit recipes``: the recipes that ship, and the published models with their defaults."""

from __future__ import annotations

from typing import Any

import click

from edgekit.cli.render import console, grid_table, print_json


@click.command("recipes")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(*, as_json: bool) -> None:
    """List the recipes that ship with edgekit and the published models it builds."""
    from edgekit.models.published import PUBLISHED  # noqa: PLC0415
    from edgekit.recipe import DEFAULT_RECIPE, load_recipe, shipped_recipes  # noqa: PLC0415

    recipes = sorted(
        (load_recipe(name) for name in shipped_recipes()),
        key=lambda recipe: (recipe.needs_calibration, recipe.name != DEFAULT_RECIPE, recipe.name),
    )
    if as_json:
        document: dict[str, Any] = {
            "default": DEFAULT_RECIPE,
            "recipes": [{**r.resolved(), "sha256": r.digest()} for r in recipes],
            "models": [model.to_dict() for model in PUBLISHED],
        }
        print_json(document)
        return
    out = console()
    out.print(grid_table(("recipe", "what it does"), [(r.name, r.description) for r in recipes]))
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
    out.print("\ncache: float16 keys and values of one token", style="dim")
