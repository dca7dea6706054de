"""``edgekit serve``: a bundle behind OpenAI's API."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from device.limits import BODY_LIMIT_BYTES
from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, error_console
from edgekit.errors import MissingExtraError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command("serve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to run; auto is what `edgekit engine choose` chose.",
)
@click.option(
    "--fallback",
    type=click.Choice(["cpu", "cuda"]),
    help="Where to run if --provider tensorrt cannot, with a warning. [default: nowhere]",
)
@click.option(
    "--dialect",
    type=click.Choice(["standard", "ort"]),
    help="Which of the bundle's graphs to run. [default: ort where there is one, the faster]",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: cores]")
@click.option(
    "--max-sequences",
    type=click.IntRange(1),
    help="Requests that generate at once. [default: the bundle's]",
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Requests that may wait; more are answered with 429.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds after which a request is given up.",
)
@click.option(
    "--drain-s",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running requests have when the server is told to stop.",
)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path),
    help="File of clients and sha256 digests of their keys. [default: everyone may ask]",
)
@click.option(
    "--tls-cert",
    "tls_certificate",
    type=click.Path(path_type=Path),
    help="PEM file of the certificate (and its chain): serve HTTPS.",
)
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM file of its key.")
@click.option(
    "--tls-client-ca",
    type=click.Path(path_type=Path),
    help="PEM file: clients must have a certificate of one of these authorities.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="Let pages of this origin ask from a browser (repeatable). [default: none]",
)
@click.option(
    "--body-limit",
    "body_limit_bytes",
    type=click.IntRange(1),
    default=BODY_LIMIT_BYTES,
    show_default=True,
    help="Largest request in bytes.",
)
@click.option(
    "--log",
    default="off",
    show_default=True,
    help="Where a line of JSON a request goes: stdout, off or a file.",
)
@click.option(
    "--routing",
    type=click.Path(path_type=Path),
    help="File with a table [routing]: what may go to a cloud endpoint. [default: nothing]",
)
@click.option("--vllm-metrics", is_flag=True, help="Tell the metrics under vLLM's names, too.")
@click.option(
    "--no-digests",
    "digests",
    flag_value=False,
    default=True,
    help="Start without checking the bundle's bytes.",
)
@click.option(
    "--no-memory-check",
    "memory_check",
    flag_value=False,
    default=True,
    help="Load the bundle even if it seems to need more memory than is available.",
)
def command(bundle: Path, **options: Any) -> None:
    r"""Serve BUNDLE behind OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    Ready when /readyz answers 200; /healthz and /metrics beside it. SIGTERM lets running requests
    end, SIGHUP looks at BUNDLE again and puts what is there in the model's place. Needs the extra
    serve.

    \b
    edgekit serve model.bundle --port 8000
    """  # fmt: skip
    if options["provider"] == "auto":
        refuse_idle("with --provider auto", "dialect")
    if options["provider"] not in {"tensorrt", "auto"}:
        refuse_idle(f"with --provider {options['provider']}", "fallback")
    if options["tls_certificate"] is None:
        refuse_idle("without --tls-cert", "tls_client_ca")
    try:
        from device.agent.agent import Agent  # noqa: PLC0415
        from device.agent.config import AgentConfig  # noqa: PLC0415
        from device.agent.loading import load_model, open_resolved  # noqa: PLC0415
        from device.agent.server import listen  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError("Serving", "serve") from error

    options["cors_origins"] = tuple(options["cors_origins"])
    if options["routing"] is not None:
        options["routing"] = _routing(options["routing"])
    config = AgentConfig(bundle=bundle, **options)
    agent = Agent(config)
    listener = listen(config.host, config.port)  # before minutes of loading
    if not sys.stderr.isatty():  # a terminal that closes ends it; nothing can be renewed yet
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    opened = open_resolved(bundle)
    with StageProgress() as progress:
        model = load_model(opened, config, progress)
    _tell(config, model, listener.getsockname()[1])
    sys.exit(agent.run(listener, model))


def _routing(path: Path) -> Any:
    """Return what a file says of routing, and say it."""
    from device.routing.config import load_routing  # noqa: PLC0415

    config = load_routing(path)
    said = f"requests may go to {config.base_url}, at most {config.daily_bytes} bytes a day"
    if not config.enabled:
        said = f"{path} routes nothing: it lacks enabled = true"
    error_console().print(f"note: {said}", highlight=False)
    return config


def _tell(config: Any, model: Any, port: int) -> None:
    """Say what is served, and what is to be known of it."""
    for warning in model.warnings:
        error_console().print(f"note: {warning}", highlight=False)
    scheme = "http" if config.tls_certificate is None else "https"
    error_console().print(
        f"{model.bundle.manifest.name}: {model.session.max_sequences} at once, "
        f"{model.session.max_context} tokens each, on {scheme}://{config.host}:{port}/v1",
        highlight=False,
    )
    if config.api_keys is None and config.tls_client_ca is None and config.host not in LOOPBACK:
        error_console().print(
            f"note: whoever reaches {config.host} may ask; --api-keys asks them for a key",
            highlight=False,
        )
