"""From the device's ring to a store over a real mosquitto: nothing is lost, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto_broker import Broker
from mqtt_client import Client
from telemetry_cases import FastClock, Proxy, Store, configuration, notice, telemetry

from device.telemetry.clock import boot_id
from device.telemetry.mqtt.day_bytes import HEADER_BYTES
from device.telemetry.ring import Ring
from edgekit.contracts.series import Values

CHILD = Path(__file__).parents[1] / "telemetry_child.py"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def store(broker: Broker) -> Iterator[Store]:
    with Store(broker).open() as opened:
        yield opened


def is_whole(store: Store, at_least: int) -> bool:
    """Whether the store has all numbers from 1 on of one boot, and enough of them."""
    numbers = sorted(seq for _, seq in {**store.samples, **store.alarms})
    return len(numbers) >= at_least and numbers == list(range(1, len(numbers) + 1))


def oldest_left(folder: Path, clock: FastClock) -> int:
    """Return the lowest number that the ring still has."""
    ring = Ring(folder / "telemetry/ring.db", boot_id(), clock)
    try:
        rows = ring.take(1000)
        return rows[0].seq if rows else sys.maxsize
    finally:
        ring.close()


def test_what_is_stored_leaves_the_ring(broker: Broker, store: Store, tmp_path: Path) -> None:
    """Samples arrive in batches, in ascending numbers without gaps, and leave the ring."""
    clock = FastClock(40.0)
    with telemetry(configuration(broker, tmp_path), clock):
        store.wait_until(lambda: is_whole(store, 20), "20 samples")
    assert store.double == 0
    assert store.came["m/batch"] <= 8
    assert len({boot for boot, _ in store.samples}) == 1
    times = [store.samples[key].time_ms for key in sorted(store.samples)]
    assert times == sorted(times)
    assert oldest_left(tmp_path, clock) > 16


def test_a_broker_that_is_killed_loses_nothing(
    broker: Broker, store: Store, tmp_path: Path
) -> None:
    """The broker is killed three times with messages under way; every number arrives."""
    with telemetry(configuration(broker, tmp_path), FastClock(40.0)):
        for kill in range(3):
            store.wait_for_samples(8 * (kill + 1))
            broker.kill()
            time.sleep(0.2)
            broker.start()
        seen = len(store.samples)
        store.wait_until(lambda: is_whole(store, seen + 8), "all samples")
    assert store.came["status/health"] >= 4


def test_a_device_that_is_killed_loses_nothing(
    broker: Broker, store: Store, tmp_path: Path
) -> None:
    """The device's process is killed three times; its ring goes on where it was."""
    config = configuration(broker, tmp_path)
    arguments = [config.ca, config.certificate, config.key, config.ring, config.port]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(CHILD.parent)])}
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, str(CHILD), *map(str, arguments)], env=environment
        ) as child:
            least = len(store.samples) + 6
            try:
                store.wait_for_samples(least)
                if life == 3:
                    store.wait_until(lambda: is_whole(store, 24), "all samples")
            finally:
                child.kill()
    connections = [health.connection for health in store.healths if health.state == "up"]
    assert connections == sorted(set(connections))
    assert len(connections) == 4


def test_a_lost_puback_is_a_double_and_no_loss(
    store: Store, broker: Broker, tmp_path: Path
) -> None:
    """What came, but whose PUBACK was lost, is sent again over another connection."""
    proxy = Proxy(broker.device_port)
    try:
        with telemetry(configuration(broker, tmp_path, port=proxy.port), FastClock()):
            store.wait_until(lambda: len(store.samples) >= 4, "samples")
            # Its acknowledgement would come again before the batch does, and spare that.
            proxy.swallows = store.loses_answers = True
            time.sleep(1.2)  # 24 s of the device's: a batch falls into it, and no time-out does
            proxy.cut()
            proxy.swallows = store.loses_answers = False
            more = len(store.samples) + 10
            store.wait_until(lambda: is_whole(store, more), "all samples")
        assert store.double > 0
        assert proxy.accepted >= 2
    finally:
        proxy.close()


def test_a_broker_that_falls_silent_is_left(store: Store, broker: Broker, tmp_path: Path) -> None:
    """Without a PUBACK for 30 s the device connects anew, though the connection looks open."""
    clock = FastClock()
    proxy = Proxy(broker.device_port)
    try:
        with telemetry(configuration(broker, tmp_path, port=proxy.port), clock):
            store.wait_until(lambda: len(store.samples) >= 4, "samples")
            proxy.swallows = True
            began_s, accepted = clock.now_s(), proxy.accepted
            while proxy.accepted == accepted:
                assert clock.now_s() - began_s < 120
                time.sleep(0.02)
            proxy.cut()  # the try that goes on is swallowed, too
            proxy.swallows = False
            more = len(store.samples) + 4
            store.wait_until(lambda: is_whole(store, more), "all samples")
    finally:
        proxy.close()


def test_a_lost_store_acknowledgement_is_a_double_and_no_loss(
    broker: Broker, store: Store, tmp_path: Path
) -> None:
    """Rows whose acknowledgement is lost come again after two minutes, and leave the ring then."""
    clock = FastClock(60.0)
    store.loses_answers = True
    with telemetry(configuration(broker, tmp_path), clock):
        store.wait_until(lambda: len(store.samples) >= 8, "samples")
        store.loses_answers = False
        seen = len(store.samples)
        store.wait_until(lambda: store.double >= seen, "the lost ones again")
        more = len(store.samples) + 8
        store.wait_until(lambda: is_whole(store, more), "all samples")
    assert oldest_left(tmp_path, clock) > seen


@pytest.mark.slow
def test_a_store_that_is_away_gets_all_when_it_is_back(
    broker: Broker, store: Store, tmp_path: Path
) -> None:
    """A store that keeps nothing for ten minutes gets every row afterwards."""
    store.answers = False
    with telemetry(configuration(broker, tmp_path), FastClock(150.0)):
        store.wait_until(lambda: store.came["m/batch"] >= 25, "batches that nobody stores")
        store.answers = True
        store.wait_until(lambda: is_whole(store, 120), "all samples")


def test_an_alarm_reaches_a_subscriber_in_15_seconds(
    broker: Broker, store: Store, tmp_path: Path
) -> None:
    """From a reading above its threshold to the subscriber, with batches every ten minutes."""
    clock = FastClock(10.0)
    held = [0.5]

    def engine() -> Values:
        return {"engine_memory_bytes": held[0] * 1e9, "engine_memory_budget_bytes": 1e9}

    config = configuration(broker, tmp_path, batch_s=600.0, sample_s=10.0)
    with telemetry(config, clock, counters={"engine": engine}):
        store.wait_until(lambda: bool(store.healths), "the birth")
        held[0], began_s = 0.95, clock.now_s()
        store.wait_for_alarms(1)
        taken_s = clock.now_s() - began_s
        held[0] = 0.5
        store.wait_for_alarms(2)
    assert taken_s < 15
    assert [store.alarms[key].state for key in sorted(store.alarms)] == ["raised", "cleared"]


def test_bytes_are_counted_as_they_go_over_the_wire(
    broker: Broker, store: Store, tmp_path: Path
) -> None:
    """Handshakes, batches and acknowledgements: what a relay saw, and headers of each segment."""
    proxy = Proxy(broker.device_port)
    config = configuration(broker, tmp_path, port=proxy.port)
    try:
        with telemetry(config, FastClock(40.0)):
            for connection in range(3):
                store.wait_for_samples(len(store.samples) + 6)
                if connection < 2:
                    proxy.cut()
        relayed = proxy.relayed_bytes
    finally:
        proxy.close()
    day = json.loads(config.ring.with_name("ring.db.bytes.json").read_text())
    values = store.samples[max(store.samples)].values
    segments = int(values["link_segments_sent_total.mqtt"] or 0)
    assert proxy.accepted == 3
    # The last look at the counters is some exchanges before the end.
    assert 0.75 * relayed < day["used"] - 2 * HEADER_BYTES * segments < 1.25 * relayed
    assert relayed > 3 * 2000


def test_live_mode_ends_by_itself(broker: Broker, store: Store, tmp_path: Path) -> None:
    """A sample every 5 s for as long as was asked for; a notice alone brings none."""
    clock = FastClock(15.0)
    config = configuration(broker, tmp_path, batch_s=3600.0, sample_s=60.0)
    identity = broker.services.issue("fleet")
    with (
        telemetry(config, clock) as running,
        Client(
            broker.service_port, "fleet-1", identity=identity, server_ca=broker.server_ca
        ) as fleet,
    ):
        store.wait_until(lambda: bool(store.healths), "the birth")
        topic, payload = notice(clock, "live", "n-1")
        fleet.publish(topic, payload)
        until_s = clock.now_s() + 15
        while clock.now_s() < until_s:
            time.sleep(0.05)
        assert not store.came["m/sample"]
        running.go_live(40.0)
        store.wait_until(lambda: store.came["m/sample"] >= 6, "live samples")
        until_s = clock.now_s() + 60
        while clock.now_s() < until_s:
            time.sleep(0.05)
        assert 6 <= store.came["m/sample"] <= 9
    assert {boot for boot, _ in store.samples} == {store.healths[0].boot}
    assert store.samples[max(store.samples)].values["notices_total.unknown"] == 1
