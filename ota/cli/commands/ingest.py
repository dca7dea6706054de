"""``edgekit-fleet ingest``: one worker."""

from __future__ import annotations

import signal
import socket
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from prometheus_client import start_http_server

from edgekit.errors import ConfigError
from ota.cli.options import store_option
from ota.ingest.metrics import Metrics
from ota.ingest.settings import Settings
from ota.ingest.worker import Worker
from ota.logs import write_logs
from ota.store.schema import open_store

_DEFAULTS = {field.name: field.default for field in fields(Settings)}
_PEM = click.Path(path_type=Path, dir_okay=False)


@click.command()
@store_option
@click.option("--broker", required=True, metavar="URL", help="mqtts://HOST:PORT or mqtt://...")
@click.option("--ca", type=_PEM, help="Authorities that sign the broker's certificate.")
@click.option("--certificate", type=_PEM, help="The worker's certificate.")
@click.option("--key", type=_PEM, help="Of the certificate.")
@click.option(
    "--name",
    default=f"ingest-{socket.gethostname()}",
    show_default=True,
    help="MQTT client id: another one for each worker, the same after a restart.",
)
@click.option("--tenant", default="+", show_default=True, help="Whose devices; + for all.")
@click.option("--group", default="ingest", show_default=True, help="Workers that share messages.")
@click.option("--group-messages", type=int, default=_DEFAULTS["group_messages"], show_default=True)
@click.option("--group-ms", type=int, default=_DEFAULTS["group_ms"], show_default=True)
@click.option(
    "--receive-maximum",
    type=int,
    default=_DEFAULTS["receive_maximum"],
    show_default=True,
    help="Most messages that are not acknowledged yet: bounds the memory.",
)
@click.option(
    "--session-s",
    type=int,
    default=_DEFAULTS["session_s"],
    show_default=True,
    help="How long the broker keeps messages for a worker that is gone.",
)
@click.option("--metrics-port", type=click.IntRange(0, 65_535), help="Serve Prometheus /metrics.")
@click.option("--metrics-address", default="127.0.0.1", show_default=True)
def command(*, url: str, metrics_port: int | None, metrics_address: str, **settings: Any) -> None:
    """Move telemetry from the broker to the store, until SIGTERM.

    Every sample is stored once, whatever is killed when (docs/fleet.md). Run as many workers as the
    load needs, each with its own --name.
    """
    write_logs()
    metrics = Metrics()
    with closing(open_store(url)) as store:
        worker = Worker(Settings(**settings), store, metrics)
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: worker.stop())
        if metrics_port is None:
            worker.run()
            return
        try:
            server, thread = start_http_server(metrics_port, metrics_address, metrics.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served on {metrics_address}:{metrics_port}: {error.strerror}",
                "Name another --metrics-port",
            ) from error
        try:
            worker.run()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
