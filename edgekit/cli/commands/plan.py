"""``edgekit plan``: does a model fit a machine, how fast is it there, what does a token cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from edgekit.cli.figures import Figure
from edgekit.cli.files import write_plot
from edgekit.cli.render import console, error_console, facts_table, grid_table, print_json
from edgekit.errors import EdgekitError, UnsupportedModelError
from edgekit.plan.hardware import ALIASES, find_machine, machines, scenarios
from edgekit.plan.roofline import DEFAULT_ENGINE, ENGINES
from edgekit.recipe import MIN_CONTEXT
from edgekit.units import format_bytes

COST_OPTIONS = (
    "scenario",
    "price_usd",
    "lifetime_years",
    "utilization",
    "power_w",
    "energy_overhead",
    "energy_usd_per_kwh",
)
_POSITIVE = Figure(0, min_open=True)
if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # generic since click 8.2 only
    _Choice = click.Choice


class _MachineName(_Choice):
    """A machine's name; ``cpu``, a build target but no machine, is refused with the reason."""

    name = "machine"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "cpu":
            self.fail(
                "'cpu' is any host: it has no bandwidth of its own, and no engine's rates on it "
                "are published to project from. `edgekit build --target cpu` counts its memory, "
                "`edgekit run` measures its rates",
                param,
                ctx,
            )
        return str(super().convert(value, param, ctx))


@click.command("plan")
@click.argument("model")
@click.option(
    "--target",
    "target_name",
    type=_MachineName([*ALIASES, *machines()]),
    help="A build target, or a machine of comparison.",
)
@click.option("--all-targets", is_flag=True, help="Every machine, a line each.")
@click.option("--recipe", "recipe_name", help="Recipe's name, or a .toml file. [default: build's]")
@click.option(
    "--max-context",
    type=click.IntRange(MIN_CONTEXT),
    help="Tokens a sequence can hold. [default: recipe's, or the model's if that is less]",
)
@click.option("--max-sequences", type=click.IntRange(1), help="Sequences decoded at once.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=DEFAULT_ENGINE,
    show_default=True,
    help="Whose published rates the projection rests on.",
)
@click.option("--power-mode", metavar="MODE", help="nvpmodel mode. [default: the fastest]")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, help="May be repeated.")
@click.option(
    "--context", "contexts", type=click.IntRange(1), multiple=True, help="May be repeated."
)
@click.option(
    "--scenario",
    type=click.Choice(list(scenarios())),
    help="Where the machine stands: sets --utilization, --energy-overhead. [default: the "
    "machine's]",
)
@click.option("--price-usd", type=Figure(0), help="Of the machine.")
@click.option("--lifetime-years", type=_POSITIVE, help="Over which it is paid. [default: 3]")
@click.option(
    "--utilization",
    type=Figure(0, 1, min_open=True),
    help="Share of the time it generates.",
)
@click.option("--power-w", type=_POSITIVE, help="Drawn by it. [default: the mode's budget]")
@click.option("--energy-overhead", type=Figure(1), help="Grid power over its own (PUE).")
@click.option("--energy-usd-per-kwh", type=Figure(0), help="[default: 0.15]")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="F.png|F.html", help="Draw the roofline."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(model: str, target_name: str | None, *, all_targets: bool, **options: Any) -> None:
    r"""Project memory, rates, energy and cost of MODEL before it is built.

    MODEL is a folder with a config.json, a checkpoint, a bundle, a published model's name or a hub
    id, of which the configuration is fetched. Exits with 5 when it fits no machine asked for.

    \b
    edgekit plan DeepSeek-R1-Distill-Qwen-7B --target orin
    edgekit plan ./checkpoint --all-targets --context 8192 --json
    """  # fmt: skip
    if all_targets == (target_name is not None):
        raise click.UsageError("give --target T or --all-targets")
    if all_targets and options["power_mode"]:
        raise click.UsageError("--power-mode is one machine's: give --target T with it")
    plans = _plans(model, list(machines()) if all_targets else [str(target_name)], options)
    if options["plot"]:
        _plot(plans, options["plot"])
    if options["as_json"]:
        print_json(_document(plans))
    elif all_targets:
        _print_all(plans)
    else:
        _print_one(plans[0])
    if options["plot"]:
        error_console().print(Text(f"the roofline is in {options['plot']}"), soft_wrap=True)
    if not any(plan.fits for plan in plans):
        if not options["as_json"]:
            error_console().print(Text(f"does not fit: {_problem(plans[0])}", style="bold red"))
        sys.exit(UnsupportedModelError.exit_code)


def _plans(model: str, names: list[str], options: dict[str, Any]) -> list[Any]:
    from edgekit.bundle.reader import is_bundle  # noqa: PLC0415 - heavy
    from edgekit.pipeline.options import is_local, model_name, named_model  # noqa: PLC0415 - heavy
    from edgekit.pipeline.subject import open_subject  # noqa: PLC0415
    from edgekit.plan.planner import PlanOptions, make_plan  # noqa: PLC0415
    from edgekit.recipe import default_recipe, load_recipe  # noqa: PLC0415

    model, name = named_model(model), options["recipe_name"]
    if name is None and not (is_local(model) and is_bundle(Path(model).expanduser())):
        # The recipes of a model differ by target in what they expect, not in what they build.
        name = default_recipe(model_name(model), names[0] if len(names) == 1 else "")
    subject = open_subject(
        model,
        None if name is None else load_recipe(name),
        max_context=options["max_context"],
        max_sequences=options["max_sequences"],
    )
    _refuse_beyond(subject, options)
    chosen = PlanOptions(
        options["engine"],
        options["batches"],
        options["contexts"],
        **{key: options[key] for key in COST_OPTIONS},
    )
    with _wrong_usage():
        found = [find_machine(machine) for machine in names]
        if options["power_mode"]:
            found = [machine.in_mode(options["power_mode"]) for machine in found]
        return [make_plan(subject, machine, chosen) for machine in found]


def _plot(plans: list[Any], path: Path) -> None:
    """Draw the roofline into a file, which is whole or as it was.

    Raises:
        UsageError: The file's name says no format.
        StorageError: It cannot be written.
    """
    from edgekit.plan.plot import draw_roofline  # noqa: PLC0415 - an extra

    with _wrong_usage():
        drawn = draw_roofline(plans, path)
    write_plot(path, drawn)


@contextmanager
def _wrong_usage() -> Iterator[None]:
    """Report an option's impossible value as wrong usage; errors of a family stay as they are."""
    try:
        yield
    except EdgekitError as error:
        if type(error) is not EdgekitError:
            raise
        raise click.UsageError(str(error)) from error


def _refuse_beyond(subject: Any, options: dict[str, Any]) -> None:
    """Refuse rows of the table that the planned bundle could not run.

    Raises:
        UsageError: A longer context, or more sequences, than it is built for.
    """
    longest = max(options["contexts"], default=0)
    if longest > subject.max_context:
        raise click.UsageError(
            f"--context {longest} is more than the bundle would hold: {subject.max_context} "
            f"tokens. Add --max-context {longest}"
        )
    most = max(options["batches"], default=0)
    if most > subject.max_sequences:
        raise click.UsageError(
            f"--batch {most} is more than the bundle would decode: {subject.max_sequences}. "
            f"Add --max-sequences {most}"
        )


def _document(plans: list[Any]) -> dict[str, Any]:
    from edgekit.plan.planner import describe_subject  # noqa: PLC0415

    return {
        "model": describe_subject(plans[0].subject),
        "projection": True,
        "plans": [plan.to_dict() for plan in plans],
    }


def _problem(plan: Any) -> str:
    from edgekit.plan.memory import misfit  # noqa: PLC0415

    return str(misfit(plan.fit, plan.machine.target))


def _print_one(plan: Any) -> None:
    """Print a machine's plan: the verdict, the rates, what they rest on."""
    out, subject, machine, cost = console(), plan.subject, plan.machine, plan.cost
    mode = f", {machine.mode} ({machine.power_w:g} W)" if machine.mode else ""
    out.print(
        facts_table(
            "",
            [
                ("model", f"{subject.name}, {subject.recipe}"),
                ("machine", f"{machine.target.title}{mode}"),
                ("fits", _verdict(plan)),
                *_memory_rows(plan),
            ],
        )
    )
    columns = ("batch", "context", "decode tok/s", "prefill tok/s", "J/token ≤", "USD/M tokens")
    rows = [
        (
            str(rate.batch),
            str(rate.context),
            f"{rate.decode_tokens_per_s:.1f}",
            f"{rate.prefill_tokens_per_s:.0f}" if rate.prefill_tokens_per_s else "-",
            f"{rate.joules_per_token:.2f}",
            f"{rate.usd_per_million_tokens:.2f}",
        )
        for rate in plan.rates
    ]
    out.print()
    out.print(grid_table(columns, rows, numbers=columns))
    out.print()
    engine = plan.engine
    compute = f", {100 * engine.compute_efficiency:.0f} % of peak FP16 in prompts"
    rests = (
        f"{engine.name} streams {engine.bandwidth(machine) / 1e9:.0f} of "
        f"{machine.bandwidth_bytes_per_s / 1e9:.0f} GB/s, {1e6 * engine.fixed_s(machine, 1):.0f} "
        f"µs a layer{compute if engine.compute_efficiency else ''}"
    )
    out.print(facts_table("", [("engine", rests), ("cost", _cost(cost))]))
    _print_notes(plan.warnings)


def _verdict(plan: Any) -> Text:
    fit = plan.fit
    used = (
        f"{format_bytes(fit.total_bytes)} of {format_bytes(fit.usable_bytes)} usable "
        f"({100 * fit.total_bytes / fit.usable_bytes:.0f} %), 20 % kept in reserve"
    )
    word = Text("yes", "bold green") if plan.fits else Text("no", "bold red")
    return Text.assemble(word, f", {used}")


def _memory_rows(plan: Any) -> list[tuple[str, str]]:
    fit, subject = plan.fit, plan.subject
    from edgekit.plan.memory import engine_build_peak_bytes  # noqa: PLC0415

    rows = [
        ("weights", f"{format_bytes(fit.weights_bytes)}, {fit.bits_per_linear_weight:.3f} bits"),
        (
            "caches",
            f"{format_bytes(fit.cache_bytes)}: {subject.max_sequences} sequences of "
            f"{subject.max_context}, {format_bytes(plan.work.cache_bytes_per_token)} a token",
        ),
        (
            "activations",
            f"{format_bytes(fit.activations_bytes)}, runtime {format_bytes(fit.runtime_bytes)}",
        ),
    ]
    if not plan.machine.is_reference:
        peak = engine_build_peak_bytes(subject.config)
        rows.append(("engine build", f"up to {format_bytes(peak)}, before it serves"))
    return rows


def _cost(cost: Any) -> str:
    return (
        f"{cost.scenario}: {cost.price_usd:g} USD over {cost.lifetime_years:g} years, busy "
        f"{100 * cost.utilization:.0f} %, {cost.power_w:g} W times {cost.energy_overhead:g} at "
        f"{cost.energy_usd_per_kwh:g} USD/kWh"
    )


def _print_all(plans: list[Any]) -> None:
    """Print a line a machine, for its first row of rates."""
    out, subject, first = console(), plans[0].subject, plans[0].rates[0]
    rests = f"batch {first.batch}, {first.context} tokens of context"
    out.print(facts_table("", [("model", f"{subject.name}, {subject.recipe}"), ("rates", rests)]))
    out.print()
    columns = ("machine", "fits", "memory", "decode tok/s", "J/token ≤", "USD/M")
    rows = [
        (
            f"{plan.machine.name} {plan.machine.mode}".strip(),
            "yes" if plan.fits else "no",
            f"{100 * plan.fit.total_bytes / plan.fit.usable_bytes:.0f} %",
            f"{plan.rates[0].decode_tokens_per_s:.1f}",
            f"{plan.rates[0].joules_per_token:.2f}",
            f"{plan.rates[0].usd_per_million_tokens:.2f}",
        )
        for plan in plans
    ]
    out.print(grid_table(columns, rows, numbers=columns[2:]))
    out.print()
    out.print(facts_table("", [(plan.machine.name, _cost(plan.cost)) for plan in plans]))
    _print_notes(dict.fromkeys(note for plan in plans for note in plan.warnings))


def _print_notes(notes: Any) -> None:
    out = console()
    out.print()
    out.print(facts_table("", [(Text("-"), Text(note, style="dim")) for note in notes]))
