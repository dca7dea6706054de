"""``edgekit eval``: a bundle's quality on data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, console, facts_table, print_json


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Prompts with expected answers, .jsonl: exact match.",
)
@click.option("--limit", type=click.IntRange(1), help="Rows of --data to ask. [default: all]")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Plain text: perplexity, and with --reference KL divergence and agreement.",
)
@click.option(
    "--window",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Tokens read at once for perplexity and divergence.",
)
@click.option(
    "--text-tokens",
    type=click.IntRange(2),
    default=8192,
    show_default=True,
    help="Tokens of --text to use.",
)
@click.option("--reference", help="The unquantized checkpoint: a folder or a hub id.")
@click.option(
    "--sequences",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Prompts answered at once.",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to run.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=lambda: len(os.sched_getaffinity(0)),
    help="CPU threads. [default: cores]",
)
@click.option(
    "--dialect",
    type=click.Choice(["standard", "ort"]),
    help="Which of the bundle's graphs to run. [default: ort where there is one, the faster]",
)
@click.option(
    "--no-digests",
    is_flag=True,
    help="Check no digests of the bundle, compare none of the reference.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(bundle: Path, **options: Any) -> None:
    r"""Measure BUNDLE: exact match on --data, perplexity and divergence on --text.

    With --reference and no --text, divergence is measured on the rows of --data, written out as
    whole conversations.

    \b
    edgekit eval model.bundle --data questions.jsonl
    edgekit eval model.bundle --text book.txt --reference ./checkpoint
    """  # fmt: skip
    if not options["data"] and not options["text"]:
        raise click.UsageError("give --data, --text or both")
    if not options["data"]:
        refuse_idle("without --data", "limit")
    if not options["text"]:
        refuse_idle("without --text", "text_tokens")
        if not options["reference"]:
            refuse_idle("without --text or --reference", "window")
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.pipeline.evaluate import EvalRequest, evaluate_bundle  # noqa: PLC0415

    as_json, digests = options.pop("as_json"), not options.pop("no_digests")
    request = EvalRequest(**options, digests=digests)
    with StageProgress() as progress:
        report = evaluate_bundle(open_bundle(bundle), request, progress)
    if as_json:
        print_json(report)
    else:
        console().print(facts_table(str(bundle), list(_rows(report))))


def _rows(report: dict[str, Any]) -> Any:
    """Yield the lines of the table; what was not measured has none."""
    for warning in report.get("warnings", ()):
        yield Text("warning", "bold yellow"), warning
    if "exact_match" in report:
        yield (
            "exact match",
            (
                f"{100 * report['exact_match']:.2f} % "
                f"({report['exact_match_count']} of {report['total']})"
            ),
        )
    if "kl_divergence_nats" in report:
        yield (
            "KL divergence",
            f"{report['kl_divergence_nats']:.4f} nats over {report['tokens']} tokens",
        )
        yield "top-1 agreement", f"{100 * report['top1_agreement']:.1f} %"
    if "perplexity" in report:
        reference = report.get("reference_perplexity")
        beside = f" (unquantized: {reference:.3f})" if reference else ""
        yield "perplexity", f"{report['perplexity']:.3f}{beside}"
