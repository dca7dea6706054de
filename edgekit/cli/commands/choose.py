"""``edgekit engine choose``: measures what can run a bundle here, and keeps the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from edgekit.cli.render import StageProgress, console, error_console, print_json
from edgekit.power import read_machine
from edgekit.units import format_bytes

if TYPE_CHECKING:
    from edgekit.choice.candidates import Candidates
    from edgekit.choice.trial import Tried


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
    from edgekit.bundle.verify import verify_digests  # noqa: PLC0415
    from edgekit.choice.candidates import find_candidates  # noqa: PLC0415
    from edgekit.choice.kept import basis, require_writable  # noqa: PLC0415
    from edgekit.choice.trial import Trial  # noqa: PLC0415
    from edgekit.choice.workload import Workload  # noqa: PLC0415
    from edgekit.trt.engine_cache import default_folder  # noqa: PLC0415

    opened, folder = open_bundle(bundle), cache or default_folder()
    require_writable(folder)
    before, found = read_machine(), basis()
    workload = Workload.fitting(opened.manifest.limits["max_context"], options["limit_s"])
    with StageProgress() as progress:
        verify_digests(opened, threads=options["threads"] or 2, progress=progress)
        candidates = find_candidates(opened, options["edgellm_python"])
        trial = Trial(
            opened,
            workload,
            options["threads"],
            options["rounds"],
            folder,
            options["edgellm_python"],
        )
        tried = trial.run(candidates, progress)
    warnings = list(dict.fromkeys([*before.warnings(), *read_machine().warnings()]))
    report = {
        "bundle": str(bundle),
        "digest": f"sha256:{opened.digest}",
        "basis": found,
        "workload": workload.to_dict(),
        "rounds": options["rounds"],
        "candidates": [one.to_dict() for one in tried],
        "left_out": candidates.left_out,
        **_keep(opened, tried, folder, options["threads"], found),
        "warnings": warnings,
        "machine": before.to_dict(),
    }
    if as_json:
        print_json(report)
        return
    _show(tried, candidates, report["chosen"])
    for warning in warnings:
        error_console().print(f"note: {warning}", highlight=False)


def _keep(
    bundle: Any, tried: list[Tried], folder: Path, threads: int | None, found: dict[str, str]
) -> dict[str, Any]:
    """Keep the fastest; returns which that is, what was faster still, and where it is kept."""
    from edgekit.choice.kept import Choice, save_choice  # noqa: PLC0415
    from edgekit.choice.trial import ranked  # noqa: PLC0415

    own, faster = ranked(tried)
    name = None if faster is None else faster.candidate.name
    provider = own.candidate.provider
    if provider is None:
        raise AssertionError
    choice = Choice(own.candidate.name, provider, own.candidate.dialect, threads, name)
    path = save_choice(folder, bundle, choice, found)
    return {"chosen": choice.name, "faster": name, "kept": str(path)}


def _show(tried: list[Tried], candidates: Candidates, chosen: str) -> None:
    """Print a row for each engine that was tried, the fastest first, and why others were not."""
    contexts = next((one.rates for one in tried if one.rates), [])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("engine", no_wrap=True)
    for rate in contexts:
        table.add_column(f"tok/s at {rate.context_tokens}", justify="right")
    table.add_column("work, s", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("")
    notes = [f"{name} left out: {reason}" for name, reason in candidates.left_out.items()]
    for one in tried:
        name, speeds = one.candidate.name, [f"{rate.decode_tokens_per_s:.1f}" for rate in one.rates]
        cells = [name, *(speeds or [""] * len(contexts))]
        cells.append("" if one.seconds is None else f"{one.seconds:.2f}")
        cells.append("" if one.resident_bytes is None else format_bytes(one.resident_bytes))
        mark = "chosen" if name == chosen else "failed" if one.failure else ""
        table.add_row(*cells, mark, style="bold" if name == chosen else "")
        if one.failure:
            notes.insert(0, f"{name} failed: {one.failure}")
    console().print(table)
    for note in notes:
        console().print(Text(note, style="dim"))
