"""``edgekit-fleet export``: what the store gets, to systems that keep series."""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import httpx
from prometheus_client import CollectorRegistry, start_http_server

from edgekit.contracts.series import SERIES
from edgekit.errors import ConfigError
from ota.cli.options import store_option
from ota.logs import write_logs
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.exporter import CursorFile, Exporter
from ota.metrics.live import FleetCollector
from ota.metrics.points import Selection
from ota.metrics.sender import Sender, write_url
from ota.metrics.source import StoreSource
from ota.store.read import last_cursor
from ota.store.schema import open_store

_FILE = click.Path(path_type=Path, dir_okay=False)
_TIMEOUT_S = 60.0
_WINDOW_H = (0.5, 876_000.0)
"""The least that is of use, and a hundred years."""


@click.group()
def command() -> None:
    """Write what the store gets to Prometheus."""


@command.command()
@store_option
@click.option(
    "--url",
    "to",
    required=True,
    metavar="URL",
    envvar="EDGEKIT_FLEET_EXPORT_PROMETHEUS_URL",  # click would call it after the argument
    help="http://prometheus:9090, or whole.",
)
@click.option("--state", required=True, type=_FILE, help="Where the cursor is kept.")
@click.option("--from-now", is_flag=True, help="Without a cursor yet, leave out what is stored.")
@click.option(
    "--series",
    metavar="NAME,...",
    help="Send these series alone, named without labels (docs/telemetry.md); all without it.",
)
@click.option(
    "--every-s",
    type=click.IntRange(0, 3600),
    default=0,
    show_default=True,
    help="Of each reading one point in so many seconds; 0 for all.",
)
@click.option(
    "--window-h",
    type=float,
    default=72,
    show_default=True,
    help="Prometheus' out_of_order_time_window: what is older is left out, and counted.",
)
@click.option("--rejects", type=_FILE, help="Keep what Prometheus refuses here, as JSON lines.")
@click.option("--token-file", type=_FILE, help="Holds a bearer token.")
@click.option("--ca", type=_FILE, help="PEM: authorities that sign the receiver's certificate.")
@click.option("--metrics-port", type=click.IntRange(0, 65_535), help="Serve Prometheus /metrics.")
@click.option("--metrics-address", default="127.0.0.1", show_default=True)
@click.option("--once", is_flag=True, help="End when everything that is stored is delivered.")
def prometheus(
    *,
    url: str,
    to: str,
    state: Path,
    from_now: bool,
    series: str | None,
    every_s: int,
    window_h: float,
    rejects: Path | None,
    token_file: Path | None,
    ca: Path | None,
    metrics_port: int | None,
    metrics_address: str,
    once: bool,
) -> None:
    """Write stored samples to Prometheus by remote write, with their own times, until SIGTERM.

    Its /metrics have what is no sample: who was heard when, alarms that are raised, and how far
    the export is (docs/fleet-metrics.md). Run one.
    """
    write_logs()
    selection = Selection(
        series=_series(series), every_ms=1000 * every_s, window_ms=_window_ms(window_h)
    )
    metrics, stop, cursor = ExportMetrics(), threading.Event(), CursorFile(state)
    with closing(open_store(url)) as store, _client(token_file, ca) as client:
        if from_now and cursor.read() is None:
            cursor.write(last_cursor(store))
        source = StoreSource(store)
        sender = Sender(write_url(to), client, metrics, Rejects(rejects), stop)
        exporter = Exporter(source, sender, cursor, selection, metrics, stop)
        metrics.registry.register(FleetCollector(source))
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: stop.set())
        with _served(metrics_port, metrics_address, metrics.registry):
            exporter.run(once=once)


def _series(text: str | None) -> frozenset[str] | None:
    """Return the names of ``--series``.

    Raises:
        ConfigError: One is no series of this release.
    """
    if text is None:
        return None
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    unknown = sorted(names - SERIES.keys())
    if unknown or not names:
        raise ConfigError(
            f"--series: there is no series {', '.join(unknown) or 'in it'}",
            "Take names of docs/telemetry.md, without the part behind the dot",
        )
    return names


def _window_ms(hours: float) -> int:
    """Return ``--window-h`` in milliseconds.

    Raises:
        ConfigError: It is no length of time.
    """
    least, most = _WINDOW_H
    if not least <= hours <= most:  # which NaN is not
        raise ConfigError(
            f"--window-h is {hours:g}, and must be {least:g} to {most:g}",
            "Give it Prometheus' out_of_order_time_window",
        )
    return int(hours * 3_600_000)


@contextmanager
def _client(token_file: Path | None, ca: Path | None) -> Iterator[httpx.Client]:
    """Return a client with the receiver's credentials.

    Raises:
        ConfigError: A file cannot be read, or is not what it should be.
    """
    headers = {"User-Agent": "edgekit-fleet"}
    try:
        if token_file is not None:
            headers["Authorization"] = f"Bearer {token_file.read_text('utf-8').strip()}"
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ValueError) as error:
        named = " or ".join(str(path) for path in (token_file, ca) if path is not None)
        raise ConfigError(f"cannot read {named}: {error}", "Name other files") from error
    with httpx.Client(headers=headers, timeout=_TIMEOUT_S, verify=context) as client:
        yield client


@contextmanager
def _served(port: int | None, address: str, registry: CollectorRegistry) -> Iterator[None]:
    """Serve metrics meanwhile, if a port is given.

    Raises:
        ConfigError: The port cannot be had.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on {address}:{port}: {error.strerror}",
            "Name another --metrics-port",
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
