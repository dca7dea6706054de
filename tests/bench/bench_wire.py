"""Measures what one device's telemetry costs on the air in a day, byte by byte, and what saves it.

Usage: python tests/bench/bench_wire.py [--seconds S] > report.json   (as root: it makes interfaces)

A simulated device (``device/simulator``: the agent's telemetry, made-up readings) lives a day
in ``--seconds``, over a link with a round trip of 10 ms, through a mosquitto of the shipped
configuration with TLS, to a worker that stores and acknowledges. Every IP packet of the link passes
``tests/impaired_link.py`` and is counted, both ways: headers of IP and TCP, handshakes, pings, bare
acknowledgements. Exchanges stay apart, for the next begins long after one has ended; where batches
follow one another faster, fewer hours are run, at a slower pace. The device's own times are short
at such a speed (45 s for a connection are 0.4), hence the short round trip. All cases run at the
same time, each with a link, a broker and a worker of its own.

The day has what the seed gives: an outage of the network, after which the device connects again,
and the alarms of five spells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_connect import connect_bytes
from fleet_workers import WorkerProcess
from impaired_link import ImpairedLink
from mosquitto_broker import Broker
from report import machine

from device.simulator.certificates import Authority
from device.simulator.clock import open_clock
from device.simulator.fleet import Fleet
from device.simulator.outages import OutageRates
from device.simulator.settings import Settings
from device.telemetry.mqtt.day_bytes import wire_bytes
from ota.store.database import Store, connect
from ota.store.read import batches_after
from ota.store.schema import migrate

DAY_S = 86_400.0
ONE_WAY_S = 0.005
SEED = 12
"""Of a day with one outage, at 11:40, and five spells."""
OUTAGES = OutageRates(share=60 / DAY_S, mean_s=60.0)


@dataclass(frozen=True)
class Case:
    """What is changed.

    Attributes:
        batch_s: As configured.
        encoding: As configured.
        keepalive_s: As configured.
        share: Of the day that is run; the rest is counted alike.
    """

    batch_s: float = 600.0
    encoding: str = "zstd-ek1"
    keepalive_s: int = 240
    share: float = 1.0


CASES = {
    "default": Case(),
    "keepalive 60 s": Case(keepalive_s=60, share=1 / 4),
    "zstd without dictionary": Case(encoding="zstd"),
    "json, columns": Case(encoding="json"),
    "batches of 1 minute": Case(batch_s=60.0, share=1 / 6),
    "one by one": Case(batch_s=10.0, share=1 / 24),
    "json, one by one": Case(batch_s=10.0, encoding="json", share=1 / 24),
}


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=720.0, help="a day, or the share of it")
    parser.add_argument("--case", choices=(*CASES, "connect"), help="this alone")
    parser.add_argument("--number", type=int, default=0, help="of the link")
    arguments = parser.parse_args()
    if arguments.case == "connect":
        with _stage(arguments.number) as (link, broker, _):
            found: dict[str, Any] = dict(connect_bytes(link, broker))
    elif arguments.case is not None:
        found = measure(CASES[arguments.case], arguments.number, arguments.seconds)
    else:
        found = {"machine": machine(), "seconds": arguments.seconds, **_all(arguments.seconds)}
    json.dump(found, sys.stdout, indent=1)


def _all(seconds: float) -> dict[str, Any]:
    """Run all cases at once, each in a process."""
    command = [sys.executable, __file__, "--seconds", str(seconds)]
    running = {
        name: subprocess.Popen(
            [*command, "--case", name, "--number", str(number)], stdout=subprocess.PIPE, text=True
        )
        for number, name in enumerate((*CASES, "connect"))
    }
    found = {}
    for name, process in running.items():
        said, _ = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"the case {name!r} failed")
        found[name] = json.loads(said)
    return found


def measure(case: Case, number: int, seconds: float) -> dict[str, Any]:
    """Run a case; return its figures, those of bytes for a whole day."""
    speed = case.share * DAY_S / seconds
    with _stage(number) as (link, broker, folder):
        store = _store(folder)
        address = f"mqtt://127.0.0.1:{broker.plain_port}"
        with closing(store), WorkerProcess(folder, _url(folder), address, options=_WORKER):
            settings = _settings(link, broker, folder, case, speed)
            Authority(broker.devices.bundle()).issue(settings.certificates, [settings.identity(0)])
            before = link.counts.copy()
            fleet = Fleet(settings, open_clock(settings.rings, speed))
            fleet.run(threading.Event(), seconds)
            counted = link.counts - before
            report = fleet.close()
            stored = _delivered(store)
    return {
        "bytes_a_day": round(counted["bytes"] / case.share),
        "packets_a_day": round(counted["packets"] / case.share),
        "run_share_of_day": round(case.share, 4),
        "speed": round(speed, 1),
        "connects": report["connects"],
        "samples": report["samples"],
        "alarms": report.get("alarms", 0),
        "left": report["left"],
        **stored,
        "device_counted_share": round(stored["device_counted_bytes"] / counted["bytes"], 3),
    }


_WORKER = ("--group-ms", "200")


@contextmanager
def _stage(number: int) -> Iterator[tuple[ImpairedLink, Broker, Path]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        link = stack.enter_context(ImpairedLink(number, delay_s=ONE_WAY_S))
        broker = stack.enter_context(Broker(folder, address=link.near, called=link.far))
        yield link, broker, folder


def _settings(
    link: ImpairedLink, broker: Broker, folder: Path, case: Case, speed: float
) -> Settings:
    return Settings(
        broker=link.far,
        port=broker.device_port,
        ca=broker.server_ca,
        certificates=folder / "certificates",
        rings=folder / "rings",
        tenant="acme",
        prefix="orin-",
        seed=SEED,
        speed=speed,
        spread_s=0.0,
        batch_s=case.batch_s,
        encoding=case.encoding,
        keepalive_s=case.keepalive_s,
        daily_bytes=100_000_000,  # what is measured is not to be slowed down
        outages=OUTAGES,
    )


def _url(folder: Path) -> str:
    return f"sqlite:///{folder}/store.db"


def _store(folder: Path) -> Store:
    store = connect(_url(folder))
    migrate(store)
    return store


def _delivered(store: Store) -> dict[str, int]:
    """Return what came: how long samples waited, and what the device itself has counted."""
    spans, counted, payload = [0], 0, 0
    for stored in batches_after(store, 0, 10_000):
        spans.append(stored.last_ms - stored.first_ms)
        payload += len(stored.payload)
        for sample in stored.batch().samples():
            values = sample.values
            parts = [
                int(values.get(f"link_{name}_total.mqtt") or 0)
                for name in ("sent_bytes", "received_bytes", "segments_sent")
            ]
            counted = max(counted, wire_bytes(*parts))
    return {
        "oldest_in_a_batch_s": round(max(spans) / 1000),
        "payload_bytes_stored": payload,
        "device_counted_bytes": counted,
    }


if __name__ == "__main__":
    main()
