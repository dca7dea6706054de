"""Measures telemetry on the device: bytes of a sample, the ring's speed and writes, idle CPU.

Usage: python tests/bench/bench_telemetry.py [--folder DIR] > report.json
The folder is where the ring stands: its disk is what the flushes are of.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from report import machine

from device.simulator.day import Day, Readings
from device.telemetry.alarm_rules import DEFAULTS
from device.telemetry.alarms import Alarms
from device.telemetry.batch import pack
from device.telemetry.clock import SystemClock
from device.telemetry.collector import Collector
from device.telemetry.ring import Ring, Row
from device.telemetry.rows import sample_payload
from device.telemetry.sensors.board import Board
from device.telemetry.sensors.proc import Proc
from device.telemetry.sensors.sensor import Sensor
from device.telemetry.sensors.storage import Storage
from device.telemetry.sensors.sysfs import Sysfs
from edgekit.batch_encoding import compress
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.telemetry import Sample

BOOT = "1f0a52c3d4e5b6a7-3f9c01d2"
START_MS = 1_784_970_508_000


def rows_of(samples: list[Readings], interval_ms: int) -> list[Row]:
    """Return samples as the ring gives them, a millisecond or two late now and then."""
    return [
        Row(BOOT, index + 1, 0, START_MS + index * interval_ms + index * 7 % 3, "synced",
            sample_payload(values))
        for index, values in enumerate(samples)
    ]  # fmt: skip


def sizes(days: int = 5) -> dict[str, Any]:
    """Return bytes of a sample, of batches of 10 minutes and by other ways."""
    samples = [list(Day(seed).samples(8640)) for seed in range(days)]
    found: dict[str, Any] = {"readings": len(samples[0][0])}
    whole = [
        len(Sample(boot=BOOT, seq=1, time_ms=START_MS, clock="synced", values=values).to_bytes())
        for values in samples[0][:500]
    ]
    found["json_one_by_one"] = sum(whole) / len(whole)
    for size in (1, 6, 60, 360):
        for encoding in ("json", "zstd", "zstd-ek1"):
            total = count = 0
            for day in samples:
                rows = rows_of(day, 10_000)
                for start in range(0, len(rows) - size + 1, max(size, len(rows) // 40)):
                    total += len(pack(rows[start : start + size], encoding).payload)
                    count += size
            found[f"batch_{size}_{encoding}"] = total / count
    ten_minutes = [samples[0][start : start + 60] for start in range(0, 600, 60)]
    records = [canonical_bytes([dict(values) for values in part]) for part in ten_minutes]
    found["rows_60_zstd"] = sum(len(compress(record, "zstd")) for record in records) / 600
    return {name: round(value, 1) for name, value in found.items()}


def written_bytes() -> int:
    """Return what this process has had written to disks (``/proc/self/io``)."""
    text = Path("/proc/self/io").read_text("utf-8")
    return int(dict(line.split(": ") for line in text.splitlines())["write_bytes"])


def timed(work: Callable[[], object], count: int) -> dict[str, float]:
    """Return wall and CPU milliseconds and bytes written of one of ``count`` calls."""
    before, cpu, wall = written_bytes(), time.process_time(), time.perf_counter()
    for _ in range(count):
        work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall_ms": round(1000 * wall / count, 3),
        "cpu_ms": round(1000 * cpu / count, 3),
        "written_bytes": round((written_bytes() - before) / count),
    }


def ring_speed(folder: Path) -> dict[str, Any]:
    """Return what puts, takes and acknowledgements cost, flushed and not."""
    payloads = [sample_payload(values) for values in Day(1).samples(60)]
    found: dict[str, Any] = {"payload_bytes": round(sum(map(len, payloads)) / 60)}
    for level in ("NORMAL", "FULL"):
        path = folder / f"{level}.db"
        ring = Ring(path, "f" * 16, SystemClock())
        ring._db.execute(f"PRAGMA synchronous = {level}")
        found[f"put_1_{level}"] = timed(partial(ring.put, payloads[:1]), 2000)
        found[f"put_60_{level}"] = timed(partial(ring.put, payloads), 500)
        values = ring.values()
        found["file_bytes_a_row"] = round(values["ring_file_bytes"] / values["ring_rows"])
        found["take_60"] = timed(partial(ring.take, 60), 100)
        parts = iter(range(1, 100_000, 60))

        def acknowledge(ring: Ring = ring, parts: Iterator[int] = parts) -> None:
            first = next(parts)
            ring.acknowledge(ring.boot, ((first, first + 59),))

        found[f"acknowledge_60_{level}"] = timed(acknowledge, 100)
        ring.close()
    start = time.perf_counter()
    Ring(path, "f" * 16, SystemClock()).close()
    found["open_ms"] = round(1000 * (time.perf_counter() - start), 1)
    found["open_file_bytes"] = path.stat().st_size
    return found


def idle(folder: Path) -> dict[str, float]:
    """Return what one tick of the collector costs on this machine's own files."""
    ring = Ring(folder / "idle.db", "f" * 16, SystemClock())
    sensors: list[Sensor] = [Sysfs(), Proc(), Storage(), Board()]
    collector = Collector(sensors, Alarms(DEFAULTS), ring, SystemClock(), sample_s=0)
    found = timed(collector.tick, 500)
    ring.close()
    return found


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the ring stands; default: a new one")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as name:
        folder = Path(name)
        report = {"machine": machine(), "sizes": sizes(), "ring": ring_speed(folder)}
        report["idle_tick"] = idle(folder)
    rows = rows_of(list(Day(1).samples(60)), 10_000)
    report["pack_60"] = timed(lambda: pack(rows), 100)
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
