"""``edgekit bench``: how fast an OpenAI-compatible server answers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.text import Text

from edgekit.cli.bench_tables import plot_title, show_report
from edgekit.cli.figures import Figure
from edgekit.cli.files import require_folder, write_json, write_plot
from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, error_console, print_json
from edgekit.errors import EdgekitError, MissingExtraError

SCENARIOS = ("latency", "single-stream", "server", "offline", "load")
DEFAULT_DURATION_S = 60.0
OWN_QUEUE = 4096
"""Of a bundle's server: LoadGen is to measure a wait, not to be refused."""
_POSITIVE = Figure(0, min_open=True)
_OF_SCENARIOS = {
    "requests": ("latency", "load"),
    "streams": ("load", "offline"),
    "duration": ("single-stream", "server", "offline"),
    "queries": ("single-stream", "server", "offline"),
    "logs": ("single-stream", "server", "offline"),
    "qps": ("server",),
    "ttft_ms": ("server",),
    "tpot_ms": ("server",),
}
"""Options that only some scenarios heed."""
_OF_BUNDLES = ("provider", "dialect", "threads", "max_sequences", "no_digests")


def _streams(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Return numbers of streams, parted by commas, each once."""
    words = value.split(",")
    if not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        message = f"{value!r} is no list of numbers such as 1,4,8"
        raise click.BadParameter(message, ctx, param)
    return tuple(dict.fromkeys(map(int, words)))


@click.command("bench")
@click.argument("target")
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice(SCENARIOS),
    multiple=True,
    default=("latency",),
    show_default=True,
    help="May be repeated.",
)
@click.option("--model", default="", help="[default: the first that the server lists]")
@click.option(
    "--endpoint",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    show_default=True,
    help="Which is asked; a chat's template counts as prompt.",
)
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the API key.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--max-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--ignore-eos", is_flag=True, help="Ask for answers of --max-tokens, none shorter.")
@click.option(
    "--requests",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Measured for each stream, in latency and load.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Requests before each scenario, for each stream; not measured.",
)
@click.option(
    "--streams",
    callback=_streams,
    metavar="N,N",
    default="1,4,8",
    show_default=True,
    help="Requests at a time: each number in load, the largest in offline.",
)
@click.option(
    "--duration",
    type=Figure(0),
    help="Seconds of LoadGen's scenarios. [default: 60, or 0 with --queries; MLPerf asks for 600]",
)
@click.option("--queries", type=click.IntRange(1), help="Least queries of LoadGen's scenarios.")
@click.option("--qps", type=_POSITIVE, default=1.0, show_default=True, help="Of server.")
@click.option(
    "--ttft-ms",
    type=_POSITIVE,
    default=2000.0,
    show_default=True,
    help="Limit of server's p99 TTFT. [MLPerf's of Llama 3.1 8B]",
)
@click.option(
    "--tpot-ms",
    type=_POSITIVE,
    default=100.0,
    show_default=True,
    help="Limit of server's p99 TPOT. [MLPerf's of Llama 3.1 8B]",
)
@click.option("--logs", type=click.Path(path_type=Path), help="Folder to keep LoadGen's logs in.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Of the prompts. [default: another each time, so that no server's cache knows them]",
)
@click.option(
    "--timeout-s",
    type=_POSITIVE,
    default=600.0,
    show_default=True,
    help="Longest wait for a server's next byte.",
)
@click.option("--fresh-connections", is_flag=True, help="Open a connection for each request.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt", "auto"]),
    help="Of a bundle's server, as the next four. [default: as `edgekit serve`]",
)
@click.option("--dialect", type=click.Choice(["standard", "ort"]))
@click.option("--threads", type=click.IntRange(1))
@click.option("--max-sequences", type=click.IntRange(1))
@click.option("--no-digests", is_flag=True)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="F.png|F.html", help="Draw what was found."
)
@click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value="-",
    metavar="FILE",
    help="Write one JSON document; - or nothing prints it instead of the tables.",
)
def command(target: str, **options: Any) -> None:
    r"""Measure how fast TARGET answers: the base URL of an OpenAI-compatible server, or a bundle.

    A bundle is served by `edgekit serve` on a free port for as long as it takes. latency asks one
    request after the other, load asks over --streams; single-stream, server and offline are
    MLPerf's by LoadGen, on x86-64 only. No run is an MLPerf submission. Exits with 11 where the
    server is not there, refuses or fails.

    \b
    edgekit bench http://127.0.0.1:8000/v1 --scenario latency --scenario load --plot b.png
    edgekit bench model.bundle --json bench.json
    """  # fmt: skip
    scenarios = tuple(dict.fromkeys(options["scenarios"]))
    _require_url(target)
    _refuse_idle_options(target, scenarios)
    try:
        from edgekit.benchmark.scenarios import Benchmark  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise MissingExtraError("Benching", "bench") from error

    _require_outputs(options["plot"], options["json_to"])
    work = _workload(options)
    with StageProgress() as progress, _target(target, options, progress) as (endpoint, named):
        benchmark = Benchmark(endpoint, work, progress)
        benchmark.run(scenarios)
    _write({**benchmark.report(), "bundle": named}, benchmark, options)


def is_url(target: str) -> bool:
    """Whether a target is a URL and no folder."""
    return target.startswith(("http://", "https://"))


def _require_url(target: str) -> None:
    """Refuse a URL that names no server.

    Raises:
        UsageError: It does not.
    """
    if not is_url(target):
        return
    try:
        parts = urlsplit(target)
        known = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:  # of a port
        known = False
    if not known:
        raise click.UsageError(f"{target} is no server's base URL: http://HOST:PORT/v1 is")
    if "@" in parts.netloc:  # it would stand in every report
        raise click.UsageError("a base URL has no name and password: use --api-key-env NAME")


def _refuse_idle_options(target: str, scenarios: tuple[str, ...]) -> None:
    if is_url(target):
        refuse_idle("with a URL, whose server runs already", *_OF_BUNDLES)
    for name, heeding in _OF_SCENARIOS.items():
        if not set(heeding) & set(scenarios):
            refuse_idle(f"without --scenario {' or '.join(heeding)}", name)


def _require_outputs(plot: Path | None, json_to: str | None) -> None:
    """Refuse, before anything is measured, what could not be written after.

    Raises:
        UsageError: The plot's name says no format.
        StorageError: A folder is not there.
        MissingExtraError: There is no matplotlib.
    """
    if json_to not in {None, "-"}:
        require_folder(Path(str(json_to)))
    if plot is None:
        return
    from edgekit.drawing import new_figure, require_format  # noqa: PLC0415 - an extra

    try:
        require_format(plot)
    except EdgekitError as error:
        raise click.UsageError(str(error)) from error
    require_folder(plot)
    new_figure(1, 1)


def _workload(options: dict[str, Any]) -> Any:
    from edgekit.benchmark.loadgen import Limits  # noqa: PLC0415 - an extra
    from edgekit.benchmark.scenarios import Workload  # noqa: PLC0415

    duration_s = options["duration"]
    if duration_s is None:
        duration_s = 0.0 if options["queries"] else DEFAULT_DURATION_S
    if not duration_s and not options["queries"]:
        raise click.UsageError("--duration 0 needs --queries N: something must end the run")
    limits = Limits(
        duration_s=duration_s,
        queries=options["queries"] or 0,
        target_qps=options["qps"],
        ttft_s=options["ttft_ms"] / 1000,
        tpot_s=options["tpot_ms"] / 1000,
        at_once=max(options["streams"]),
    )
    seed = secrets.randbits(32) if options["seed"] is None else options["seed"]
    names = ("prompt_tokens", "max_tokens", "requests", "warmup", "streams", "logs")
    return Workload(seed=seed, limits=limits, **{name: options[name] for name in names})


@contextmanager
def _target(
    target: str, options: dict[str, Any], progress: StageProgress
) -> Iterator[tuple[Any, dict[str, str] | None]]:
    """Yield the endpoint, and of a bundle its path and digest; a bundle is served until then."""
    from edgekit.benchmark.endpoint import Endpoint  # noqa: PLC0415 - an extra

    common = {
        "fields": {"ignore_eos": True} if options["ignore_eos"] else {},
        "kind": options["endpoint"],
        "model": options["model"],
        "api_key": _api_key(options["api_key_env"]),
        "timeout_s": options["timeout_s"],
        "keep_alive": not options["fresh_connections"],
    }
    if is_url(target):
        yield Endpoint(target, **common), None
        return
    from edgekit.benchmark.child_server import serve_bundle  # noqa: PLC0415
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415

    bundle = open_bundle(Path(target))
    named = {"path": str(bundle.path), "digest": f"sha256:{bundle.digest}"}
    with serve_bundle(bundle.path, _serve_options(options), progress) as url:
        yield Endpoint(url, **common), named


def _api_key(name: str | None) -> str | None:
    """Return the key that an environment variable has.

    Raises:
        UsageError: It has none.
    """
    if name is None:
        return None
    key = os.environ.get(name)
    if not key or not (key.isascii() and key.isprintable()):
        raise click.UsageError(f"--api-key-env {name}: the environment has no key of that name")
    return key


def _serve_options(options: dict[str, Any]) -> list[str]:
    """Return the options for ``edgekit serve``."""
    found = ["--queue", str(OWN_QUEUE), "--timeout-s", f"{options['timeout_s']:g}"]
    for name in ("provider", "dialect", "threads", "max_sequences"):
        if options[name] is not None:
            found += [f"--{name.replace('_', '-')}", str(options[name])]
    return [*found, "--no-digests"] if options["no_digests"] else found


def _write(report: dict[str, Any], benchmark: Any, options: dict[str, Any]) -> None:
    """Print what was found, and write the files that were asked for."""
    plot, json_to = options["plot"], options["json_to"]
    machine = benchmark.machine.describe()
    if plot is not None:
        from edgekit.benchmark.plot import draw_benchmark  # noqa: PLC0415 - an extra

        title = plot_title(report, machine)
        write_plot(plot, draw_benchmark(benchmark.measured, plot, title, report["warnings"]))
    if json_to == "-":
        print_json(report)
    else:
        show_report(report, machine)
        if json_to is not None:
            write_json(Path(json_to), report)
    if plot is not None:
        error_console().print(Text(f"the plot is in {plot}"), soft_wrap=True)
