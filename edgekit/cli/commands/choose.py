"""``edgekit engine choose``: measures what can run a bundle here, and keeps the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.render import StageProgress, console, print_json
from edgekit.units import format_bytes


@click.command("choose")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of engines and choices; `run` looks in $EDGEKIT_ENGINES. [default: as of "
    "`engine build`]",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: cores]")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often each engine is timed; the median counts.",
)
@click.option(
    "--limit-s",
    type=click.FloatRange(1),
    default=900.0,
    show_default=True,
    help="An engine that takes longer a round is given up.",
)
@click.option(
    "--edgellm-python",
    type=click.Path(path_type=Path),
    help="Python with tensorrt-edgellm, whose engine is tried, too (docs/edgellm.md).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(bundle: Path, cache: Path | None, *, as_json: bool, **options: Any) -> None:
    """Measure every engine that can run BUNDLE here, and keep the fastest.

    Each is loaded in a process of its own, held to the bundle's golden sequences, and timed on a
    short and a long context. `edgekit run --provider auto` uses the choice. Exits with 11 where
    no engine passes.
    """
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.choice.choose import choose_engine  # noqa: PLC0415
    from edgekit.trt.engine_cache import default_folder  # noqa: PLC0415

    with StageProgress() as progress:
        report = choose_engine(
            open_bundle(bundle), cache or default_folder(), progress=progress, **options
        )
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    """Print a row for each engine that was tried, the fastest first, and why others were not."""
    tried = report["candidates"]
    contexts: list[Any] = next((one["rates"] for one in tried if one["rates"]), [])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("engine", no_wrap=True)
    for rate in contexts:
        table.add_column(f"tok/s at {rate['context_tokens']}", justify="right")
    table.add_column("work, s", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("")
    notes = [f"{name} left out: {reason}" for name, reason in report["left_out"].items()]
    for one in tried:
        speeds = [f"{rate['decode_tokens_per_s']:.1f}" for rate in one["rates"]]
        cells = [one["name"], *(speeds or [""] * len(contexts))]
        cells.append("" if one["seconds"] is None else f"{one['seconds']:.2f}")
        cells.append("" if one["resident_bytes"] is None else format_bytes(one["resident_bytes"]))
        chosen = one["name"] == report["chosen"]
        mark = "chosen" if chosen else "failed" if one["failure"] else ""
        table.add_row(*cells, mark, style="bold" if chosen else "")
        if one["failure"]:
            notes.insert(0, f"{one['name']} failed: {one['failure']}")
    if report["faster"]:
        notes.append(f"{report['faster']} is the fastest, and served by itself: docs/edgellm.md")
    console().print(table)
    for note in [*notes, *report["warnings"]]:
        console().print(Text(note, style="dim"))
