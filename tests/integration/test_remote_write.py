"""Batches as devices send them, through the exporter, into a real Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from metrics_cases import ListSource, stored
from prometheus_server import Prometheus

from device.simulator.day import Day
from edgekit.contracts.series import Number
from edgekit.errors import ExportError
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.exporter import CursorFile, Exporter
from ota.metrics.points import Selection
from ota.metrics.sender import Sender
from ota.store.records import StoredBatch

HOUR_MS = 3_600_000
BATCH = 60
"""Samples of a batch of ten minutes."""


@contextmanager
def exporting(
    url: str, source: ListSource, folder: Path, selection: Selection | None = None
) -> Iterator[tuple[Exporter, ExportMetrics]]:
    metrics, stop = ExportMetrics(), threading.Event()
    with httpx.Client(timeout=30) as client:
        sender = Sender(url, client, metrics, Rejects(folder / "rejects.jsonl"), stop)
        cursor = CursorFile(folder / "cursor.json")
        yield Exporter(source, sender, cursor, selection or Selection(), metrics, stop), metrics


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with Prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        yield server


def batches_of(
    samples: Mapping[int, Mapping[str, Number | None]], device: str, first: int = 1
) -> list[StoredBatch]:
    """Return samples by the batch of ten minutes."""
    times = sorted(samples)
    return [
        stored(first + n, {t: samples[t] for t in times[at : at + BATCH]}, device=device)
        for n, at in enumerate(range(0, len(times), BATCH))
    ]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def hours(count: int, seed: int = 1) -> dict[int, Mapping[str, Number | None]]:
    """Return a device's samples of the last hours, every ten seconds."""
    rows = list(Day(seed).samples(count * 360))
    begin_ms = now_ms() - 10_000 * len(rows)
    return {begin_ms + 10_000 * n: row for n, row in enumerate(rows)}


def total(metrics: ExportMetrics, name: str = "points_total") -> float:
    return metrics.registry.get_sample_value(f"edgekit_fleet_export_{name}") or 0.0


def count_of(prometheus: Prometheus, device: str, at_s: float | None = None) -> int:
    """Return how many points Prometheus has of a device, each time of a series once."""
    found = prometheus.query(f'{{__name__=~"edgekit_device_.*",device="{device}"}}[30h]', at_s)
    times = [[at for at, _ in one["values"]] for one in found]
    assert all(len(set(one)) == len(one) for one in times)
    return sum(map(len, times))


def test_an_outage_replayed_newest_first_is_whole(prometheus: Prometheus, tmp_path: Path) -> None:
    """Six hours that come back newest batch first, after the present, are all there, in order."""
    samples = hours(6)
    batches = batches_of(samples, "replay")
    live, outage = batches[-3:], batches[:-3]
    source = ListSource([*live, *reversed(outage)])
    source.batches = [
        stored_again(one, cursor) for cursor, one in enumerate(source.batches, start=1)
    ]
    with exporting(prometheus.write_url, source, tmp_path) as (exporter, metrics):
        exporter.run(once=True)
        expected = sum(value is not None for row in samples.values() for value in row.values())
        assert total(metrics) == expected
    assert not (tmp_path / "rejects.jsonl").exists()
    assert count_of(prometheus, "replay") == expected
    uptime = prometheus.query('edgekit_device_uptime_seconds{device="replay"}[30h]')[0]["values"]
    assert [(round(at * 1000), float(value)) for at, value in uptime] == [
        (at, row["uptime_s"]) for at, row in samples.items()
    ]


def stored_again(batch: StoredBatch, cursor: int) -> StoredBatch:
    """Return a batch under another number."""
    rows = {one.time_ms: one.values for one in batch.batch().samples()}
    return stored(cursor, rows, device=batch.device)


def test_what_is_sent_again_is_not_counted_twice(prometheus: Prometheus, tmp_path: Path) -> None:
    """An exporter that lost its cursor sends everything again: no point and no increase is new."""
    samples = hours(3, seed=2)
    source = ListSource(batches_of(samples, "again"))
    expression = 'increase(edgekit_device_probe_sent_total{device="again"}[2h])'
    found = []
    at_s = time.time()
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with exporting(prometheus.write_url, source, folder) as (exporter, metrics):
            exporter.run(once=True)
            assert total(metrics) > 0
        assert not (folder / "rejects.jsonl").exists()
        found.append((count_of(prometheus, "again", at_s), prometheus.value(expression, at_s)))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == pytest.approx(7200, rel=0.02)


def test_points_that_prometheus_refuses_cost_no_others(
    prometheus: Prometheus, tmp_path: Path
) -> None:
    """A value that contradicts one that is there is kept as a reject; its neighbours get in."""
    at = now_ms() - 60_000
    first = stored(1, {at: {"uptime_s": 100, "gpu_mhz": 306.0}}, device="conflict")
    other = stored(
        2,
        {at: {"uptime_s": 101, "gpu_mhz": 306.0, "emc_mhz": 3199}, at + 10_000: {"uptime_s": 111}},
        device="conflict",
    )
    for name, batch in (("a", first), ("b", other)):
        (tmp_path / name).mkdir()
        source = ListSource([batch])
        with exporting(prometheus.write_url, source, tmp_path / name) as (exporter, metrics):
            exporter.run(once=True)
            rejected = metrics.registry.get_sample_value(
                "edgekit_fleet_export_rejected_points_total", {"reason": "conflict"}
            )
    assert rejected == 1
    assert "uptime_s" in (tmp_path / "b" / "rejects.jsonl").read_text()
    values = prometheus.query('edgekit_device_uptime_seconds{device="conflict"}[1h]')[0]["values"]
    assert [float(value) for _, value in values] == [100, 111]
    assert count_of(prometheus, "conflict") == 4


def test_older_than_the_window_is_left_out_not_tried_for_ever(tmp_path: Path) -> None:
    """With a wrong --window-h Prometheus' word is final, and what is young enough gets in."""
    begin = now_ms()
    rows = {begin - 10 * HOUR_MS: {"uptime_s": 1}, begin - HOUR_MS: {"uptime_s": 2}}
    with Prometheus(tmp_path / "prometheus", window="3h") as server:
        source = ListSource([stored(1, {begin: {"uptime_s": 3}}, device="old")])
        with exporting(server.write_url, source, tmp_path) as (exporter, metrics):
            exporter.run(once=True)
            source.batches.append(stored(2, rows, device="old"))
            exporter.run(once=True)
            assert total(metrics) == 2
            rejected = {
                sample.labels["reason"]: sample.value
                for family in metrics.rejected.collect()
                for sample in family.samples
                if sample.name.endswith("_total") and sample.value
            }
        assert rejected == {"too_old": 1}
        values = server.query('edgekit_device_uptime_seconds{device="old"}[1d]')[0]["values"]
        assert [float(value) for _, value in values] == [2, 3]


def test_a_receiver_that_starts_late_and_restarts_loses_nothing(tmp_path: Path) -> None:
    """Prometheus may be away when the exporter starts, and may be ended while it writes."""
    samples = hours(2, seed=3)
    server = Prometheus(tmp_path / "prometheus")
    source = ListSource(batches_of(samples, "late"))
    with exporting(server.write_url, source, tmp_path) as (exporter, metrics):
        thread = threading.Thread(target=exporter.run, kwargs={"once": True})
        thread.start()
        while not metrics.requests.labels("failed")._value.get():
            time.sleep(0.01)
        with server:
            thread.join(30)
            assert not thread.is_alive()
            expected = sum(v is not None for row in samples.values() for v in row.values())
            server.stop()
            server.start()
            assert count_of(server, "late") == expected


def test_without_the_receiver_switched_on_it_is_said(tmp_path: Path) -> None:
    """The flag that Prometheus needs is named."""
    server = Prometheus(tmp_path / "prometheus")
    command = [word for word in server.command() if "remote-write" not in word]
    server.command = lambda: command  # type: ignore[method-assign]
    source = ListSource([stored(1, {now_ms(): {"uptime_s": 1}})])
    with (
        server,
        exporting(server.write_url, source, tmp_path) as (exporter, _),
        pytest.raises(ExportError) as caught,
    ):
        exporter.run(once=True)
    assert "--web.enable-remote-write-receiver" in caught.value.remedy
