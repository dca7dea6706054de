"""``edgekit diff``: what changed between two bundles."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.render import console, facts_table, grid_table, print_json
from edgekit.units import format_bytes

SHOWN = 12


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(a: Path, b: Path, *, as_json: bool) -> None:
    """Show what changed from bundle A to bundle B, and what a device that holds A would fetch."""
    from edgekit.bundle.diff import diff_bundles  # noqa: PLC0415
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415

    diff = diff_bundles(open_bundle(a), open_bundle(b))
    if as_json:
        print_json(diff.to_dict())
        return
    share = 100 * diff.transfer_bytes / diff.full_bytes
    rows = [
        ("from", str(a)),
        ("to", str(b)),
        ("full", format_bytes(diff.full_bytes)),
        ("transfer", f"{format_bytes(diff.transfer_bytes)} ({share:.1f} %)"),
        ("tensors", f"{len(diff.tensors)} differ, {diff.same_tensors} are the same"),
        ("files", ", ".join(diff.files) or "the same"),
        ("manifest", ", ".join(diff.fields) or "the same"),
    ]
    out = console()
    out.print(facts_table("", rows))
    if diff.tensors:
        shown = [(c.name, c.change, format_bytes(c.new_bytes)) for c in diff.tensors[:SHOWN]]
        out.print()
        out.print(
            grid_table(("tensor", "change", "new"), shown, numbers=("new",), telling=("change",))
        )
    if len(diff.tensors) > SHOWN:
        out.print(f"... and {len(diff.tensors) - SHOWN} more (--json lists all)", style="dim")
