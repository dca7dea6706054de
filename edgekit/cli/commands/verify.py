"""``edgekit verify``: every digest, the graphs, the golden sequences."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, console, facts_table, grid_table, print_json
from edgekit.units import format_bytes


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--no-graphs", is_flag=True, help="Leave the graphs' plan out; needs no onnx.")
@click.option("--no-run", is_flag=True, help="Run nothing; load no engine.")
@click.option(
    "--no-compile-check",
    is_flag=True,
    help="Do not compile the graph with this machine's TensorRT builder.",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    default="cpu",
    show_default=True,
    help="Where to run the golden sequences.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=lambda: len(os.sched_getaffinity(0)),
    help="CPU threads. [default: cores]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(bundle: Path, **options: Any) -> None:
    """Check BUNDLE: every byte by digest, the graphs, and their answers to the golden sequences.

    On a CPU the target's graph runs too, as it is written; where a TensorRT builder is installed,
    it is compiled. Exits with 10 when the bundle is
    damaged, 9 when a graph is not as planned, 12 when a graph's answers are too far from the
    recorded ones, 11 when an engine fails or the answers are not finite.
    """  # fmt: skip
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.pipeline.compile_findings import describe_check  # noqa: PLC0415
    from edgekit.pipeline.verify import verify_bundle  # noqa: PLC0415

    if options["no_run"]:
        refuse_idle("with --no-run", "provider", "no_compile_check")
    if options["no_graphs"]:
        refuse_idle("with --no-graphs", "no_compile_check")
    with StageProgress() as progress:
        report = verify_bundle(
            open_bundle(bundle),
            provider=options["provider"],
            threads=options["threads"],
            graphs=not options["no_graphs"],
            run=not options["no_run"],
            compiling=not options["no_compile_check"],
            progress=progress,
        )
    if options["as_json"]:
        print_json(report)
        return
    rows = [
        ("bundle", f"{bundle} is whole"),
        ("digest", report["digest"]),
        ("bytes", f"{format_bytes(report['checked_bytes'])} in {report['blobs']} blobs"),
        ("graphs", ", ".join(report["graphs"] or ["not checked (--no-graphs)"])),
    ]
    rows.append(("compile", describe_check(report["compile_check"])))
    rows += [(name, f"not run: {reason}") for name, reason in report["left_out"].items()]
    console().print(facts_table("", rows))
    from edgekit.evaluate.golden_set import STORED_WEIGHTS  # noqa: PLC0415

    if report["golden"]:
        _print_golden(report["golden"], judged=report["golden_scored_by"] == STORED_WEIGHTS)


def _print_golden(reports: dict[str, dict[str, Any]], *, judged: bool) -> None:
    """Print how each graph did on the golden sequences, and what the figures are."""
    from edgekit.pipeline.verify import ENGINE_LIMITS  # noqa: PLC0415

    out, columns = console(), ("graph run", "difference", "KL divergence", "same best token")
    rows = [
        (
            name,
            f"{golden['mean_abs_difference_nats']:.4f} nats",
            f"≥ {golden['kl_divergence_bound_nats']:.1e} nats",
            f"{100 * golden['top1_agreement']:.1f} % of {golden['clear_positions']}",
        )
        for name, golden in reports.items()
    ]
    out.print()
    out.print(grid_table(columns, rows, numbers=columns[1:]))
    tokens = next(iter(reports.values()))["tokens"]
    out.print()
    out.print(
        Text(
            f"Answers to {tokens} recorded tokens. Difference: of the next token's log-probability "
            "from the recorded one, on average. KL divergence: at least this. Same best token: at "
            f"the positions where the recorded one leads by {ENGINE_LIMITS.margin_nats:g} nats or "
            "more."
            + (
                ""
                if judged
                else " The bundle was built with --no-check, so the recorded tokens are the "
                "unquantized model's: what quantization lost is in the differences, and no limit "
                "holds them."
            ),
            style="dim",
        )
    )
