"""``edgekit verify``: every digest, the graphs, the golden sequences."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, console, facts_table, print_json
from edgekit.units import format_bytes


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--no-graphs", is_flag=True, help="Leave the graphs' plan out; needs no onnx.")
@click.option("--no-run", is_flag=True, help="Run nothing; load no engine.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
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
        refuse_idle("with --no-run", "provider")
    with StageProgress() as progress:
        report = verify_bundle(
            open_bundle(bundle),
            provider=options["provider"],
            threads=options["threads"],
            graphs=not options["no_graphs"],
            run=not options["no_run"],
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
    rows += [(name, _describe(golden)) for name, golden in (report["golden"] or {}).items()]
    console().print(facts_table("", rows))


def _describe(golden: dict[str, Any]) -> str:
    """Return how a graph did on the golden sequences."""
    return (
        f"{golden['tokens']} golden tokens, KL at least "
        f"{golden['kl_divergence_bound_nats']:.2g} nats, mean difference "
        f"{golden['mean_abs_difference_nats']:.4f} nats, top-1 agreement "
        f"{100 * golden['top1_agreement']:.1f} % of {golden['clear_positions']} clear ones"
    )
