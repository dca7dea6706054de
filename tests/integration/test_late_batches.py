"""The shipped rules on batches that arrive as devices send them, with the clock 60 times as fast.

promtool knows no time of arrival. Here two hours of batches of ten minutes take two minutes: every
duration of the rules is a sixtieth, samples are a sixth of a second apart, and a batch is written
when its last sample is due, as the exporter writes it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from metrics_cases import stored
from prometheus_server import Prometheus

from edgekit.contracts.series import Number
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.points import Selection, read_chunk
from ota.metrics.sender import Sender

pytestmark = pytest.mark.slow
SPEED = 60
BATCHES = 12
SAMPLE_S = 10.0
PER_BATCH = 60
RAISED_AT = 25.5
"""Minutes after which the device ``rises`` is above the threshold for good."""
Device = Callable[[int], Mapping[str, Number | None]]
_chance = random.Random(7)


def ratio(value: float) -> Mapping[str, Number | None]:
    return {"engine_memory_used_ratio": value}


def probes(lost_of_1000: int) -> Device:
    def of(n: int) -> Mapping[str, Number | None]:
        return {"probe_sent_total": 10 * n, "probe_lost_total": 10 * n * lost_of_1000 // 1000}

    return of


DEVICES: Mapping[str, Device] = {
    # Between the thresholds and above the upper one, a batch each.
    "swings": lambda n: ratio(0.91 if n // PER_BATCH % 2 else 0.88),
    # Noise around the upper threshold, sample by sample.
    "noisy": lambda _: ratio(0.9 + _chance.uniform(-0.02, 0.02)),
    # One odd sample at the end of every batch.
    "odd": lambda n: ratio(0.99 if n % PER_BATCH == PER_BATCH - 1 else 0.5),
    "rises": lambda n: ratio(0.95 if n * SAMPLE_S >= RAISED_AT * 60 else 0.5),
    "calm": lambda _: ratio(0.5),
    "lossy": probes(8),
    "clean": probes(0),
}


class Fleet:
    """Devices that send their batches in time, but ``outage``: it catches up, newest first."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.begin_s = time.time()
        self._waiting: list[tuple[str, int]] = []

    def time_ms(self, n: int) -> int:
        return round(1000 * (self.begin_s + n * SAMPLE_S / SPEED))

    def run(self) -> None:
        for batch in range(BATCHES):
            end_s = self.begin_s + (batch + 1) * PER_BATCH * SAMPLE_S / SPEED
            time.sleep(max(end_s - time.time(), 0))
            for device in DEVICES:
                self._send(device, batch)
            self._outage(batch)

    def _outage(self, batch: int) -> None:
        """Send nothing from the fourth batch to the eighth; then those, newest first."""
        self._waiting.append(("outage", batch))
        if 3 <= batch <= 7:
            return
        for _, late in reversed(self._waiting):
            self._send("outage", late)
        self._waiting = []

    def _send(self, device: str, batch: int) -> None:
        readings = DEVICES.get(device, DEVICES["calm"])
        numbers = range(batch * PER_BATCH, (batch + 1) * PER_BATCH)
        one = stored(batch + 1, {self.time_ms(n): readings(n) for n in numbers}, device=device)
        self._sender.send(read_chunk([one], Selection(), one.last_ms).series)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Fleet]]:
    """Two hours of a fleet, in two minutes."""
    folder: Path = tmp_path_factory.mktemp("late")
    metrics = ExportMetrics()
    with Prometheus(folder, speed=SPEED) as server, httpx.Client(timeout=30) as client:
        rejects = Rejects(folder / "rejects.jsonl")
        fleet = Fleet(Sender(server.write_url, client, metrics, rejects, threading.Event()))
        fleet.run()
        time.sleep(2)
        assert not (folder / "rejects.jsonl").exists()
        yield server, fleet


def begun(server: Prometheus, alert: str, device: str) -> list[float]:
    """Return when an alert of a device began to fire, each time that it did."""
    selector = f'{{alertname="{alert}",device="{device}"}}'
    found = server.query(f"ALERTS_FOR_STATE{selector}[10m]")
    return sorted({float(value) for one in found for _, value in one["values"]})


@pytest.mark.parametrize("device", ["swings", "noisy"])
def test_alerts_do_not_flap(watched: tuple[Prometheus, Fleet], device: str) -> None:
    """Two hours around the upper threshold are one alert, which fires to the end."""
    server, _ = watched
    assert len(begun(server, "EdgekitGpuMemoryHigh", device)) == 1
    assert ("EdgekitGpuMemoryHigh", device) in server.firing()


@pytest.mark.parametrize("device", ["odd", "calm", "outage", "clean"])
def test_nothing_is_raised_without_reason(watched: tuple[Prometheus, Fleet], device: str) -> None:
    """Odd samples, gaps and a replay an hour late raise no alert of the readings."""
    server, _ = watched
    assert server.query(f'ALERTS{{device="{device}"}}[10m]') == []


def test_how_late_the_second_witness_is(watched: tuple[Prometheus, Fleet]) -> None:
    """From the sensor's time to firing: the rest of the batch, and three minutes at most."""
    server, fleet = watched
    assert len(begun(server, "EdgekitGpuMemoryHigh", "rises")) == 1
    (found,) = server.query('ALERTS{alertname="EdgekitGpuMemoryHigh",device="rises"}[10m]')
    minutes = (float(found["values"][0][0]) - fleet.begin_s) * SPEED / 60
    print(f"above since minute {RAISED_AT}, fires at minute {minutes:.1f}")  # noqa: T201
    arrival = 30.0
    assert arrival <= minutes <= arrival + 3


def test_packet_loss_is_steady(watched: tuple[Prometheus, Fleet]) -> None:
    """Loss of 0.8 % is raised once there are a thousand probes, once, though batches leave gaps."""
    server, _ = watched
    assert len(begun(server, "EdgekitPacketLoss", "lossy")) == 1
    assert ("EdgekitPacketLoss", "lossy") in server.firing()


def test_a_replay_is_all_there(watched: tuple[Prometheus, Fleet]) -> None:
    """What arrived an hour late, newest first, is as whole as what came in time."""
    server, _ = watched
    selector = "edgekit_device_engine_memory_used_ratio{device=~'outage|calm'}[10m]"
    counts = {
        one["metric"]["device"]: float(one["value"][1])
        for one in server.query(f"count_over_time({selector})")
    }
    assert counts == {"outage": BATCHES * PER_BATCH, "calm": BATCHES * PER_BATCH}
