"""``edgekit engine``: a bundle's TensorRT engine for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.commands import choose
from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, console, facts_table, print_json
from edgekit.units import format_bytes


@click.group("engine")
def command() -> None:
    """Build engines where they run, measure them, and keep the fastest."""


command.add_command(choose.command)


@command.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of engines. [default: $EDGEKIT_ENGINES, else ~/.cache/edgekit/engines]",
)
@click.option(
    "--cache-gb",
    type=click.FloatRange(0, min_open=True),
    default=64.0,
    show_default=True,
    help="Engines unused for longest are removed above this.",
)
@click.option(
    "--while-serving",
    is_flag=True,
    help="Another process serves: reserve memory first, build at the lowest priority.",
)
@click.option(
    "--load-file",
    type=click.Path(path_type=Path),
    help="Hold the build back while this file says busy; with --while-serving.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def build(bundle: Path, cache: Path | None, cache_gb: float, **options: Any) -> None:
    """Build BUNDLE's engine for this machine, or find the one built before.

    An engine goes with its graph, weights, plan, TensorRT, GPU and L4T: change one and another is
    built. It is read and checked by its digest before it is used; a damaged one is built again.
    A build that fails or is killed leaves the engines as they were. Exits with 11 where the
    machine is not the bundle's or the builder fails.
    """  # fmt: skip
    if not options["while_serving"]:
        refuse_idle("without --while-serving", "load_file")
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.trt.beside import Beside  # noqa: PLC0415
    from edgekit.trt.device_build import find_machine, obtain_engine  # noqa: PLC0415
    from edgekit.trt.engine_cache import EngineCache, default_folder  # noqa: PLC0415

    opened = open_bundle(bundle)
    machine = find_machine()
    engines = EngineCache(cache or default_folder(), int(cache_gb * 1e9))
    beside = Beside(options["load_file"]) if options["while_serving"] else None
    with StageProgress() as progress:
        engine = obtain_engine(opened, engines, machine, progress, beside=beside)
        engine.release()
    report = describe(opened, machine, engine)
    if options["as_json"]:
        print_json(report)
        return
    rows = [
        ("engine", report["engine"]),
        ("bytes", format_bytes(report["size_bytes"])),
        ("profiles", ", ".join(report["profiles"])),
        ("attention", report["attention"]),
    ]
    if engine.damage:
        rows.append(("built again", engine.damage))
    if engine.evicted:
        rows.append(("removed", f"{len(engine.evicted)} engines unused for longest"))
    console().print(facts_table("", rows))


def describe(bundle: Any, machine: Any, engine: Any) -> dict[str, Any]:
    """Return an engine as JSON (``docs/schemas/engine.schema.json``).

    Args:
        bundle: Whose it is.
        machine: What built it.
        engine: As the cache gave it.
    """
    builder = machine.builder
    return {
        "bundle": str(bundle.path),
        "digest": f"sha256:{bundle.digest}",
        "engine": str(engine.path),
        "size_bytes": engine.size_bytes,
        "built": engine.built,
        "damage": engine.damage or None,
        "evicted": list(engine.evicted),
        "builder": builder.name,
        "version": builder.version,
        "sm": builder.sm,
        "l4t": machine.l4t,
        "runs_here": machine.runs_engines,
        **engine.facts,
    }
