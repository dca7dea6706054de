"""Measures the exporter: points a second into a real Prometheus, and CPU seconds of both.

Usage: PYTHONPATH=.:tests python tests/bench/bench_export.py [--devices N] [--batches N]
Batches are those of a made-up day (``device.simulator.day``), ten minutes each, as the store has
them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from metrics_cases import ListSource, device_of, stored
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_server import Prometheus
from report import machine

from device.simulator.day import Day
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.exporter import CursorFile, Exporter
from ota.metrics.live import FleetCollector
from ota.metrics.points import Selection
from ota.metrics.sender import Sender
from ota.store.records import StoredBatch

PER_BATCH = 60


def fleet(devices: int, batches: int) -> list[StoredBatch]:
    """Return batches of a fleet in the order that they come: all devices, then the next minutes."""
    days = [Day(seed) for seed in range(devices)]
    begin_ms = time.time_ns() // 1_000_000 - batches * PER_BATCH * 10_000
    found: list[StoredBatch] = []
    for batch in range(batches):
        for number, day in enumerate(days):
            first = begin_ms + batch * PER_BATCH * 10_000 + number
            rows = {first + 10_000 * n: row for n, row in enumerate(day.samples(PER_BATCH))}
            found.append(stored(len(found) + 1, rows, device=f"orin-{number}"))
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def export(batches: list[StoredBatch], every_s: int) -> dict[str, Any]:
    """Return what it takes to write them all."""
    metrics, stop = ExportMetrics(), threading.Event()
    with tempfile.TemporaryDirectory() as name, Prometheus(Path(name) / "p") as server:
        with httpx.Client(timeout=60) as client:
            sender = Sender(server.write_url, client, metrics, Rejects(None), stop)
            cursor = CursorFile(Path(name) / "cursor.json")
            selection = Selection(every_ms=1000 * every_s)
            exporter = Exporter(ListSource(batches), sender, cursor, selection, metrics, stop)
            before, own, begin = (
                cpu_s(server.pid),
                time.process_time(),
                time.perf_counter(),
            )
            exporter.run(once=True)
            wall_s = time.perf_counter() - begin
            own_s = time.process_time() - own
            server_s = cpu_s(server.pid) - before
        points = metrics.registry.get_sample_value("edgekit_fleet_export_points_total") or 0
    return {
        "every_s": every_s,
        "batches": len(batches),
        "points": int(points),
        "points_per_s": round(points / wall_s),
        "exporter_cpu_s_per_million_points": round(own_s / points * 1e6, 2),
        "prometheus_cpu_s_per_million_points": round(server_s / points * 1e6, 2),
    }


def scrape(devices: int) -> dict[str, Any]:
    """Return what a scrape of the fleet takes, the store's answer not counted."""
    names = [f"orin-{n}" for n in range(devices)]
    known = [device_of(name, 1_784_970_508_000, site="north", edgekit="1.4") for name in names]
    source = ListSource(known=known)
    registry = CollectorRegistry()
    registry.register(FleetCollector(source))
    begin = time.perf_counter()
    body = generate_latest(registry)
    return {
        "devices": devices,
        "scrape_s": round(time.perf_counter() - begin, 2),
        "bytes": len(body),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--batches", type=int, default=6)
    options = parser.parse_args()
    batches = fleet(options.devices, options.batches)
    report = {
        "machine": machine(),
        "export": [export(batches, every_s) for every_s in (0, 60)],
        "scrape": scrape(10_000),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
