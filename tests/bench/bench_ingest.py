"""Measures ingest: workers under the load of a fleet, through a real broker into a real database.

Usage: python tests/bench/bench_ingest.py [--database sqlite|postgresql] [--workers N] [--rate R]
           [--seconds S] > report.json

The default rate is that of 100 000 devices: a batch of 60 samples in ten minutes each, 167 batches
and 10 000 samples a second. A rate of 0 sends as fast as the broker takes it: what workers can do.
The store has the 100 000 devices, with 60 samples each, before the clock starts. CPU is user and
system time of the processes; commits reach the disk of the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from fleet_workers import WorkerProcess
from ingest_load import BOOT, SAMPLES, TENANT
from mosquitto_broker import Broker
from postgres_server import Postgres
from report import machine
from sqlalchemy import text

from ota.store.database import Store, connect
from ota.store.read import last_cursor
from ota.store.schema import migrate

DEVICES = 100_000
FLEET_RATE = DEVICES / 600
_TICKS = os.sysconf("SC_CLK_TCK")
_LOAD = Path(__file__).with_name("ingest_load.py")
_PATIENCE_S = 120.0


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=FLEET_RATE, help="batches a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--batches", type=int, help="instead of --seconds")
    arguments = parser.parse_args()
    batches = arguments.batches or round(arguments.rate * arguments.seconds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(_database(arguments.database, folder))
        store = stack.enter_context(closing(connect(url)))
        fill(store)
        found = measure(stack, folder, store, url, arguments.workers, batches, arguments.rate)
    settings = {"database": arguments.database, "workers": arguments.workers}
    json.dump({"machine": machine(), **settings, **found}, sys.stdout, indent=1)


@contextmanager
def _database(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/store.db"
        return
    with Postgres(flush=True) as server:
        yield server.database()


def fill(store: Store) -> None:
    """Make the tables and the fleet."""
    migrate(store)
    numbers = range(DEVICES)
    with store.writing() as connection:
        connection.execute(
            text(
                "INSERT INTO devices (id, tenant, device, first_received_ms, last_received_ms)"
                " VALUES (:id, :tenant, :device, 1, 1)"
            ),
            [{"id": n + 1, "tenant": TENANT, "device": f"d{n}"} for n in numbers],
        )
        stored = json.dumps([[1, SAMPLES]])
        connection.execute(
            text(
                "INSERT INTO boots"
                " (device_id, boot, stored, first_received_ms, last_received_ms, born)"
                " VALUES (:id, :boot, :stored, 1, 1, true)"
            ),
            [{"id": n + 1, "boot": BOOT, "stored": stored} for n in numbers],
        )


def measure(
    stack: ExitStack,
    folder: Path,
    store: Store,
    url: str,
    workers: int,
    batches: int,
    rate: float,
) -> dict[str, Any]:
    """Run workers and the generator; return the figures."""
    broker = stack.enter_context(Broker(folder))
    address = f"mqtt://127.0.0.1:{broker.plain_port}"
    running = [
        stack.enter_context(WorkerProcess(folder, url, address, f"w{n}", ["--group-ms", "200"]))
        for n in range(workers)
    ]
    load = stack.enter_context(_load(broker.plain_port, batches, rate))
    before = [cpu_s(worker.pid) for worker in running]
    broker_before, start = cpu_s(broker.pid), time.monotonic()
    _say(load, "go")
    backlogs = follow(store, load, batches, rate, start)
    seconds = time.monotonic() - start
    generator = json.loads(_hear(load))
    spent = [cpu_s(worker.pid) - was for worker, was in zip(running, before, strict=True)]
    samples = batches * SAMPLES
    return {
        "batches": batches,
        "rate_batches_s": round(rate, 1),
        "seconds": round(seconds, 2),
        "samples_s": round(samples / seconds),
        "worker_cpu_s": [round(one, 2) for one in spent],
        "worker_cpu_s_a_million_samples": round(sum(spent) / samples * 1e6, 2),
        "worker_peak_rss_mb": [peak_mb(worker.pid) for worker in running],
        "backlog_batches_max": max(backlogs, default=0),
        "broker_cpu_s": round(cpu_s(broker.pid) - broker_before, 2),
        "generator": generator,
    }


def follow(
    store: Store, load: subprocess.Popen[str], batches: int, rate: float, start: float
) -> list[int]:
    """Wait until all batches are committed; return how many were not, each half second."""
    backlogs: list[int] = []
    while (committed := last_cursor(store)) < batches:
        late_s = time.monotonic() - start - (batches / rate if rate else 0)
        if late_s > _PATIENCE_S:
            raise RuntimeError(f"{committed} of {batches} batches are stored")
        if rate and load.poll() is None:
            backlogs.append(max(int((time.monotonic() - start) * rate) - committed, 0))
        time.sleep(0.05 if not rate else 0.5)
    return backlogs


@contextmanager
def _load(port: int, batches: int, rate: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(_LOAD), str(port), "0", str(batches), str(rate)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if _hear(process) != "ready":
                raise RuntimeError("the generator does not start")
            yield process
        finally:
            process.kill()


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def cpu_s(pid: int) -> float:
    """Return the processor time of a process, user and system, in seconds."""
    fields: Sequence[str] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mb(pid: int) -> float:
    """Return the largest resident size of a process, in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise RuntimeError("the kernel does not say VmHWM")


if __name__ == "__main__":
    main()
