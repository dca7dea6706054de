"""``edgekit serve``: a bundle behind OpenAI's API."""

from __future__ import annotations

import contextlib
import math
import socket
from pathlib import Path
from typing import Any

import click

from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, error_console
from edgekit.errors import EngineError, MissingExtraError

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
    "queue_limit",
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
@click.option("--no-digests", is_flag=True, help="Start without checking the bundle's bytes.")
def command(bundle: Path, host: str, port: int, **options: Any) -> None:
    r"""Serve BUNDLE behind OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    Ready when /readyz answers 200; /healthz and /metrics beside it. SIGTERM lets running requests
    end. Needs the extra serve.

    \b
    edgekit serve model.bundle --port 8000
    """  # fmt: skip
    if options["provider"] == "auto":
        refuse_idle("with --provider auto", "dialect")
    if options["provider"] not in {"tensorrt", "auto"}:
        refuse_idle(f"with --provider {options['provider']}", "fallback")
    try:
        from device.api.app import make_app  # noqa: PLC0415
        from device.api.service import Service, Settings, read_keys  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError("Serving", "serve") from error
    from edgekit.cli.commands.run import as_chosen  # noqa: PLC0415

    keys = None if options["api_keys"] is None else read_keys(options["api_keys"])
    listener = listen(host, port)  # before minutes of loading
    model = _load(bundle, options, as_chosen)
    settings = Settings(
        queue_limit=options["queue_limit"],
        timeout_s=options["timeout_s"],
        drain_s=options["drain_s"],
        keys=keys,
    )
    service = Service(model, model.own_sampling, settings)
    slots = model.session.max_sequences
    error_console().print(
        f"{service.name}: {slots} at once, {model.session.max_context} tokens each, on "
        f"http://{host}:{listener.getsockname()[1]}/v1",
        highlight=False,
    )
    if keys is None and host not in LOOPBACK:
        error_console().print(
            f"note: whoever reaches {host} may ask; --api-keys asks them for a key", highlight=False
        )
    run_server(make_app(service), listener, options["drain_s"])


def run_server(app: Any, listener: socket.socket, drain_s: float) -> None:
    """Serve an application until SIGTERM or Ctrl-C.

    Args:
        app: An ASGI application.
        listener: Where it listens.
        drain_s: Seconds that running requests have then.
    """
    import uvicorn  # noqa: PLC0415

    from device.api.limits import guarded  # noqa: PLC0415

    config = uvicorn.Config(
        app,
        http=guarded(),
        ws="none",
        log_level="warning",
        access_log=False,  # it would name who asks, and when
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(drain_s) + 1,
    )
    # Once all is ended uvicorn raises the signal that ended it again.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        EngineError: The address is none of this machine's, or is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise EngineError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "Choose another --host or --port",
        ) from error


def _load(bundle: Path, options: dict[str, Any], as_chosen: Any) -> Any:
    """Return the bundle loaded with its slots."""
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.engine.load import load_bundle  # noqa: PLC0415

    opened = open_bundle(bundle)
    if options["provider"] == "auto":
        options, warnings = as_chosen(opened, options)
        for warning in warnings:
            error_console().print(f"note: {warning}", highlight=False)
    with StageProgress() as progress:
        return load_bundle(
            opened,
            provider=options["provider"],
            fallback=options["fallback"],
            threads=options["threads"],
            dialect=options["dialect"],
            max_sequences=options["max_sequences"] or opened.manifest.limits["max_sequences"],
            digests=not options["no_digests"],
            progress=progress,
        )
