"""``edgekit export``: a bundle's weights in the layout that another engine's builder reads."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from edgekit.cli.render import StageProgress, console, facts_table, print_json
from edgekit.units import format_bytes


@click.command("export")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["gptq"]),
    default="gptq",
    show_default=True,
    help="gptq: a checkpoint that TensorRT Edge-LLM, vLLM and transformers read.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=lambda: len(os.sched_getaffinity(0)),
    help="Files hashed at once. [default: cores]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(bundle: Path, *, form: str, out: Path, threads: int, as_json: bool) -> None:
    r"""Write BUNDLE's weights as a checkpoint that other engines are built from.

    For bundles of 4 bits in groups of 128 (recipe w4a16-g128). Codes and scales are the bundle's
    own; an int8 embedding or head becomes float16. Needs neither onnx nor torch, so a device makes
    it from the bundle that it has.

    \b
    edgekit export model.bundle --out ./model-gptq
    """  # fmt: skip
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.exporters.gptq_checkpoint import export_gptq  # noqa: PLC0415

    opened = open_bundle(bundle)
    with StageProgress() as progress:
        report = export_gptq(opened, out, threads=threads, progress=progress)
    if as_json:
        facts = {"bundle": str(opened.path), "digest": f"sha256:{opened.digest}", "format": form}
        print_json({**facts, **asdict(report), "path": str(report.path)})
        return
    rows: list[tuple[str | Text, str | Text]] = [
        ("checkpoint", str(report.path)),
        ("weights", format_bytes(report.size_bytes)),
        ("head", report.head),
        ("embedding", report.embedding),
        ("rounded", ", ".join(report.rounded) or "nothing"),
    ]
    rows += [(Text("warning", "bold yellow"), warning) for warning in report.warnings]
    console().print(facts_table("", rows))
