"""A small fleet for the dashboards: devices' own code makes samples, the exporter writes them.

``orin-1`` has worked hard and hot for twenty minutes, ``orin-2`` is calm, ``orin-3`` was not heard
for most of an hour, ``orin-4`` said goodbye.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from metrics_cases import ListSource, alarm_of, device_of
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_server import Prometheus
from serve_cases import wait_until

from device.simulator.day import Day
from device.telemetry.alarm_rules import DEFAULTS
from device.telemetry.alarms import Alarms
from device.telemetry.batch import pack
from device.telemetry.collector import Collector
from device.telemetry.ring import Ring
from device.telemetry.sensors.counters import Counters
from device.telemetry.sensors.sensor import Sensor
from edgekit.contracts.series import Values
from edgekit.errors import SensorError
from ota.ingest.metrics import Metrics
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.exporter import CursorFile, Exporter
from ota.metrics.live import FleetCollector
from ota.metrics.points import Selection
from ota.metrics.sender import Sender
from ota.store.records import StoredBatch

TICK_MS = 5_000
HOURS = 2.5
HOT_MS = 20 * 60_000
_BATCH = 60


class _Clock:
    """Time that passes when it is told to, up to now."""

    def __init__(self, begin_ms: int) -> None:
        self.elapsed_ms = 0
        self._begin_ms = begin_ms

    def monotonic_ms(self) -> int:
        return self.elapsed_ms

    def time_ms(self) -> int:
        return self._begin_ms + self.elapsed_ms

    def is_synced(self) -> bool:
        return True


class _Flaky:
    """A sensor that fails now and then."""

    name = "modem"

    def read(self, now_s: float) -> Values:
        if int(now_s) % 600 < 10:
            raise SensorError("ModemManager does not answer", "")
        return {}


def device_batches(
    folder: Path, device: str, now_ms: int, *, hot: bool, first: int
) -> list[StoredBatch]:
    """Return what a device's collector, ring and packer make of some hours.

    Args:
        folder: For the ring.
        device: Its name.
        now_ms: When it ends.
        hot: Whether it is above its thresholds in the end.
        first: Number of the first batch.
    """
    ticks = int(HOURS * 3_600_000 / TICK_MS)
    clock = _Clock(now_ms - ticks * TICK_MS)
    day = Day(first, TICK_MS / 1000).samples(ticks)

    def readings() -> Values:
        values = {**next(day), "storage_life_used_ratio.mmcblk0": 0.12, "emc_load_percent": 21.5}
        values["ring_dropped_total.full"] = clock.elapsed_ms // 3_000_000
        if hot and ticks * TICK_MS - clock.elapsed_ms < HOT_MS:
            values["temperature_celsius.gpu"] = 93.5
            values["engine_memory_bytes"] = 12_100_000_000
        return values

    ring = Ring(folder / f"{device}.db", "1f0a52c3d4e5b6a7", clock)
    sensors: list[Sensor] = [Counters("day", readings), _Flaky()]
    collector = Collector(sensors, Alarms(DEFAULTS), ring, clock)
    for _ in range(ticks):
        clock.elapsed_ms += TICK_MS
        collector.tick()
    rows = sorted(ring.take(100_000), key=lambda row: row.seq)
    ring.close()
    found = []
    for number, at in enumerate(range(0, len(rows), _BATCH), start=first):
        part = rows[at : at + _BATCH]
        packed = pack(part)
        times = (part[0].time_ms, part[-1].time_ms, part[-1].time_ms)
        where = ("acme", device, packed.boot, "synced", packed.seq)
        found.append(StoredBatch(number, *where, *times, packed.encoding, packed.payload))
    return found


def _source(folder: Path) -> ListSource:
    now_ms = time.time_ns() // 1_000_000
    batches = [
        *device_batches(folder, "orin-1", now_ms, hot=True, first=1),
        *device_batches(folder, "orin-2", now_ms, hot=False, first=1001),
    ]
    known = [
        device_of("orin-1", now_ms, site="north", edgekit="1.4.0"),
        device_of("orin-2", now_ms, site="north", edgekit="1.4.0"),
        device_of("orin-3", now_ms - 50 * 60_000, "down", "lost", site="south", edgekit="1.3.2"),
        device_of("orin-4", now_ms - 60_000, "down", "stopped", site="south", edgekit="1.4.0"),
    ]
    alarms = [
        alarm_of("orin-1", "temperature", "temperature_celsius.gpu"),
        alarm_of("orin-1", "gpu_memory", "engine_memory_used_ratio"),
    ]
    return ListSource(batches, known, alarms)


@contextmanager
def watched_fleet(folder: Path) -> Iterator[Prometheus]:
    """Return a Prometheus that has the fleet's hours and whose rules have seen them."""
    source, exported, ingest = _source(folder), ExportMetrics(), Metrics()
    ingest.broker_up.set(1)
    ingest.store_up.set(1)
    exported.registry.register(FleetCollector(source))
    registries: tuple[tuple[str, CollectorRegistry], ...] = (
        ("edgekit-export", exported.registry),
        ("edgekit-ingest", ingest.registry),
    )
    with ExitStack() as stack:
        targets = {}
        for job, registry in registries:
            server, thread = start_http_server(0, "127.0.0.1", registry)
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            targets[job] = server.server_port
        prometheus = stack.enter_context(
            Prometheus(folder / "prometheus", targets=targets, every="1s")
        )
        client = stack.enter_context(httpx.Client(timeout=30))
        rejects, stop = Rejects(folder / "rejects.jsonl"), threading.Event()
        sender = Sender(prometheus.write_url, client, exported, rejects, stop)
        cursor = CursorFile(folder / "cursor.json")
        Exporter(source, sender, cursor, Selection(), exported, stop).run(once=True)
        assert not (folder / "rejects.jsonl").exists()
        for _ in range(3):  # what ingest counts is a rate: it needs to grow
            ingest.rows.labels("sample", "stored").inc(60)
            time.sleep(1)
        wait_until(lambda: ("EdgekitTemperatureHigh", "orin-1") in prometheus.firing(), 30)
        wait_until(lambda: prometheus.value("count(device:edgekit_silence:seconds)") == 4, 30)
        yield prometheus
