"""``edgekit build``: a checkpoint becomes a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, console, facts_table, print_json
from edgekit.recipe import DEFAULT_RECIPE, MIN_CONTEXT
from edgekit.targets import TARGETS
from edgekit.units import format_bytes


@click.command("build")
@click.argument("model")
@click.option(
    "--target",
    "target_name",
    type=click.Choice(list(TARGETS)),
    required=True,
    help="Machine the bundle is for.",
)
@click.option(
    "--recipe",
    "recipe_name",
    help="Shipped recipe's name, or a .toml file. [default: the published model's own for the "
    f"target, else {DEFAULT_RECIPE}]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Bundle folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("--adapter", type=click.Path(path_type=Path), help="PEFT LoRA folder to merge.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Data for calibrated recipes, .jsonl or .txt.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Bundle of an earlier version: keeps its scales where they are as good, so that the "
    "update is small.",
)
@click.option(
    "--exporter",
    type=click.Choice(["native", "optimum"]),
    default="native",
    show_default=True,
    help="What makes the graph: edgekit, or for families it has no graph for Optimum (target cpu).",
)
@click.option(
    "--optimum-python",
    type=click.Path(path_type=Path),
    envvar="EDGEKIT_OPTIMUM_PYTHON",
    show_envvar=True,
    help="Python with Optimum (scripts/optimum.sh makes one).",
)
@click.option("--revision", help="Commit, tag or branch of a hub id.")
@click.option(
    "--max-context",
    type=click.IntRange(MIN_CONTEXT),
    help="Tokens a sequence can hold. [default: recipe's, or the model's if that is less]",
)
@click.option("--max-sequences", type=click.IntRange(1), help="Sequences decoded at once.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=lambda: len(os.sched_getaffinity(0)),
    help="Worker threads; only a calibrated recipe's bytes depend on it. [default: cores]",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Where a calibrated recipe runs the model; its bytes depend on it.",
)
@click.option("--no-check", is_flag=True, help="Do not run the golden sequences at the end.")
@click.option(
    "--no-compile-check",
    is_flag=True,
    help="Do not compile the graph with this machine's TensorRT builder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(**options: Any) -> None:
    r"""Quantize, export, check and bundle MODEL, a checkpoint folder or a hub id.

    Interrupted and run again, it takes up where it stopped and gives the same bytes.

    \b
    edgekit build deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --target orin
    edgekit build ./checkpoint --target cpu --recipe w8a16 --out model.bundle
    edgekit build ./mistral --target cpu --exporter optimum
    """  # fmt: skip
    from edgekit.pipeline.build import build  # noqa: PLC0415 - heavy
    from edgekit.pipeline.options import model_name  # noqa: PLC0415
    from edgekit.pipeline.request import BuildRequest  # noqa: PLC0415
    from edgekit.recipe import default_recipe, load_recipe  # noqa: PLC0415

    if options["exporter"] == "native":
        refuse_idle("without --exporter optimum", "optimum_python")
    as_json, target = options["as_json"], TARGETS[options["target_name"]]
    recipe = options["recipe_name"] or default_recipe(model_name(options["model"]), target.name)
    request = BuildRequest(
        model=options["model"],
        target=target,
        recipe=load_recipe(recipe),
        out=options["out"] or default_out(options["model"], target.name),
        revision=options["revision"],
        adapter=options["adapter"],
        calibration=options["calibration"],
        base=options["base"],
        max_context=options["max_context"],
        max_sequences=options["max_sequences"],
        threads=options["threads"],
        device=options["device"],
        overwrite=options["overwrite"],
        check=not options["no_check"],
        compile_check=not options["no_compile_check"],
    )
    with StageProgress() as progress:
        if options["exporter"] == "optimum":
            from edgekit.exporters.build import build_exported  # noqa: PLC0415 - heavy

            result = build_exported(request, options["optimum_python"], progress)
        else:
            result = build(request, progress)
    if as_json:
        print_json(result.to_dict())
    else:
        console().print(facts_table("", _rows(result.to_dict())))


def default_out(model: str, target: str) -> Path:
    """Return the bundle folder in the working folder that a build without ``--out`` makes.

    Raises:
        UsageError: It would stand inside the checkpoint.
    """
    from edgekit.pipeline.options import is_local, model_name  # noqa: PLC0415 - heavy

    if is_local(model) and Path(model).expanduser().resolve() == Path.cwd():
        raise click.UsageError(
            "without --out the bundle would be made inside the checkpoint: give --out FOLDER"
        )
    return Path(f"{model_name(model)}.{target}.bundle")


def _rows(result: dict[str, Any]) -> list[tuple[str | Text, str]]:
    """Return the closing table of a build."""
    from edgekit.pipeline.compile_findings import describe_check  # noqa: PLC0415

    fit, limits = result["fit"], result["limits"]
    used = 100 * fit["total_bytes"] / fit["usable_bytes"]
    rows: dict[str, str] = {
        "bundle": result["bundle"],
        "digest": result["digest"],
        "recipe": f"{result['recipe']} for {result['target']}",
        "size": f"{format_bytes(result['full_bytes'])}, "
        f"{result['bits_per_linear_weight']:.3f} bits per linear weight",
        "context": f"{limits['max_context']} tokens a sequence, "
        f"{limits['max_sequences']} sequences",
        "memory": f"{format_bytes(fit['total_bytes'])} predicted, {used:.1f} % of "
        f"{format_bytes(fit['usable_bytes'])} usable; caches {format_bytes(fit['cache_bytes'])}",
        "quality": _quality(result["quality"]),
        "compile": describe_check(result["compile_check"]),
    }
    if result["update"]:
        rows["update"] = _update(result["update"])
    warnings = [
        (Text("warning", "bold yellow"), said) for said in result["quality"].get("warnings", ())
    ]
    return [*rows.items(), *warnings]


def _quality(quality: dict[str, Any]) -> str:
    if not quality["checked"]:
        return f"not checked: {quality['reason']}"
    return (
        f"KL {quality['kl_divergence_nats']:.4f} nats, top-1 agreement "
        f"{100 * quality['top1_agreement']:.1f} % over {quality['tokens']} golden tokens"
    )


def _update(update: dict[str, Any]) -> str:
    kept = 100 * update["kept_scales"] / update["scales"]
    return (
        f"{format_bytes(update['transfer_bytes'])} to fetch from the base, "
        f"{kept:.1f} % of its scales kept"
    )
