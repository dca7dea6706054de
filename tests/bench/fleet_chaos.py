"""Kills everything that moves telemetry, and counts both sides: is a row lost, or stored twice?

Usage: python tests/bench/fleet_chaos.py [--devices N] [--rounds N] [--database sqlite|postgresql]
           > report.json                                          (as root: it makes an interface)

Devices (``python -m device.simulator``, five processes) send over a link that loses 5 % of all
packets each way and delays them by 150 ms each way (a round trip of 300 ms), TLS throughout, to a
mosquitto of the shipped configuration; two workers store. In every round the broker is killed
(``kill -9``); in every second one a worker, in every fourth one a process of devices; and twice the
link is cut for 60 s. Then the link is whole, the rings are drained, and every row that a ring ever
took is looked for in the store (``tests/simulated_fleet.py``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_workers import WorkerProcess
from impaired_link import ImpairedLink
from mosquitto_broker import Broker
from postgres_server import Postgres
from report import machine
from simulated_fleet import SimulatorProcess, take_accounts

from ota.store.database import connect
from ota.store.schema import migrate

LOSS, DELAY_S, CUT_S = 0.05, 0.15, 60.0
_LINK = 100
"""Another one than those of bench_wire."""
PROCESSES, WORKERS = 5, 2
ROUND_S, DOWN_S = 12.0, 1.5
UP_S, DRAIN_S = 120.0, 300.0
PACE = (
    *("--speed", "3", "--sample-s", "10", "--batch-s", "60", "--spread-s", "45"),
    *("--spells-s", "1800", "--daily-bytes", "100000000"),
)
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder that is in memory is what is wanted


@dataclass
class Stage:
    """What runs, and can be killed."""

    link: ImpairedLink
    broker: Broker
    workers: list[WorkerProcess]
    devices: list[SimulatorProcess]


def run(
    devices: int, rounds: int, database: str = "postgresql", round_s: float = ROUND_S
) -> dict[str, Any]:
    """Run it all; return the figures.

    Raises:
        AssertionError: A row was lost, stored twice, or changed.
    """
    began_s = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_MEMORY)))
        url = stack.enter_context(_database(database, folder))
        store = stack.enter_context(closing(connect(url)))
        migrate(store)
        stage = _stage(stack, folder, url, devices)
        _wait_for(stage.broker, devices)
        kills = _kill(stage, rounds, round_s)
        reports = [process.report() for process in stage.devices]
        _say("draining")
        drain_s = _drain(stage)
        connects = stage.broker.log.read_text().count("u'sim/device/")
        _say("counting")
        accounts = take_accounts(folder, store)
        accounts.check()
    return {
        "devices": devices,
        "database": database,
        "killed": kills,
        "rows_promised": len(accounts.promised),
        "rows_given": len(accounts.given),
        "rows_stored": len(accounts.stored),
        "rows_dropped": accounts.dropped,
        "alarms": sum(report.get("alarms", 0) for report in reports),
        "connects": connects,
        "packets": stage.link.counts["packets"],
        "packets_lost": stage.link.counts["lost"],
        "latest_poll_ms": max(report["late_ms"] for report in reports),
        "drain_s": round(drain_s, 1),
        "seconds": round(time.monotonic() - began_s, 1),
    }


@contextmanager
def _database(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/store.db"
        return
    with Postgres() as server:
        yield server.database()


def _stage(stack: ExitStack, folder: Path, url: str, devices: int) -> Stage:
    link = stack.enter_context(ImpairedLink(_LINK, delay_s=DELAY_S, loss=LOSS))
    broker = stack.enter_context(Broker(folder, address=link.near, called=link.far))
    identity = broker.services.issue("ingest")
    options = [
        *("--ca", str(broker.server_ca), "--certificate", str(identity.certificate)),
        *("--key", str(identity.key), "--group-ms", "200"),
    ]
    address = f"mqtts://localhost:{broker.service_port}"
    workers = [
        stack.enter_context(WorkerProcess(folder, url, address, f"w{number}", options))
        for number in range(WORKERS)
    ]
    shares = [number * devices // PROCESSES for number in range(PROCESSES + 1)]
    running = [
        stack.enter_context(
            SimulatorProcess(
                broker, folder, host=link.far, first=first, devices=end - first, options=PACE
            )
        )
        for first, end in itertools.pairwise(shares)
    ]
    return Stage(link, broker, workers, running)


def _wait_for(broker: Broker, devices: int) -> None:
    """Wait until all devices have connected once."""
    deadline = time.monotonic() + UP_S
    while (seen := _seen(broker)) < devices:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{seen} of {devices} devices have connected in {UP_S:.0f} s")
        time.sleep(1.0)


def _seen(broker: Broker) -> int:
    """Return how many devices the broker's log names."""
    parts = broker.log.read_text().split("u'sim/device/")[1:]
    return len({part.partition("'")[0] for part in parts})


def _kill(stage: Stage, rounds: int, round_s: float) -> Counter[str]:
    """Kill in turn; return what was killed how often."""
    kills: Counter[str] = Counter()
    whole_s = 0.0
    for number in range(rounds):
        if number in (rounds // 4, 3 * rounds // 4):
            stage.link.is_cut, whole_s = True, time.monotonic() + CUT_S
            kills["link"] += 1
        time.sleep(round_s - DOWN_S)
        stage.broker.kill()
        kills["broker"] += 1
        if number % 2 == 1:
            worker = stage.workers[number // 2 % WORKERS]
            worker.kill()
            kills["worker"] += 1
        time.sleep(DOWN_S)
        stage.broker.start()
        if number % 2 == 1:
            worker.start()
        if number % 4 == 2:
            process = stage.devices[number // 4 % PROCESSES]
            process.kill()
            process.start()
            kills["process of devices"] += 1
        if stage.link.is_cut and time.monotonic() >= whole_s:
            stage.link.is_cut = False
        _say(f"round {number + 1} of {rounds}, {dict(stage.link.counts)}")
    time.sleep(max(whole_s - time.monotonic(), 0.0))
    stage.link.is_cut = False
    return kills


def _drain(stage: Stage) -> float:
    """Let all rings empty themselves over a whole link; return seconds."""
    began_s = time.monotonic()
    stage.link.loss, stage.link.delay_s = 0.0, 0.0
    for process in stage.devices:
        process.start("--drain")
    for process in stage.devices:
        process.wait(DRAIN_S)
    return time.monotonic() - began_s


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Run, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    arguments = parser.parse_args()
    found = run(arguments.devices, arguments.rounds, arguments.database)
    json.dump({"machine": machine(), **found}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
