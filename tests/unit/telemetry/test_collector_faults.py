"""What fails beside the collector: alarms are decided, kept and told all the same."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from telemetry_fakes import FakeClock

from device.telemetry.alarm_rules import DEFAULTS
from device.telemetry.alarms import Alarms
from device.telemetry.collector import Collector
from device.telemetry.ring import ALARM, Ring
from device.telemetry.rows import alarm_of
from device.telemetry.sensors.counters import Counters
from device.telemetry.sensors.tcp_info import Links
from edgekit.contracts.series import Values
from edgekit.errors import RingError

FULL: Values = {"disk_used_ratio./": 0.99}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ring(tmp_path: Path, clock: FakeClock) -> Iterator[Ring]:
    opened = Ring(tmp_path / "ring.db", "f" * 16, clock)
    yield opened
    opened.close()


def test_an_alarm_outlives_a_ring_that_fails(
    ring: Ring, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided while the disk was full, it is kept as soon as the disk is not."""

    def full(*_: object) -> list[int]:
        raise RingError("the disk is full")

    collector = Collector([Counters("disk", lambda: FULL)], Alarms(DEFAULTS), ring, clock)
    with monkeypatch.context() as patch:
        patch.setattr(ring, "put", full)
        for _ in range(3):
            with pytest.raises(RingError):
                collector.tick()
            clock.pass_ms(5000)
    collector.tick()
    (row,) = ring.take(9, ALARM)
    assert (alarm_of(row).alarm, alarm_of(row).state) == ("disk", "raised")
    collector.tick()
    assert not ring.take(9, ALARM)


def test_a_sensor_with_a_bug_silences_no_alarm(ring: Ring, clock: FakeClock) -> None:
    """Whatever a sensor raises is counted; the others are read and alarms decided."""

    def wrong() -> Values:
        raise RuntimeError("dictionary changed size during iteration")

    sensors = [Counters("wrong", wrong), Counters("disk", lambda: FULL)]
    collector = Collector(sensors, Alarms(DEFAULTS), ring, clock)
    collector.tick()
    clock.pass_ms(5000)
    values, decisions = collector.tick()
    assert [decision.alarm for decision in decisions] == ["disk"]
    assert values["sensor_errors_total.wrong"] == 2


def test_rows_of_an_agent_before_are_dated_anew(tmp_path: Path, clock: FakeClock) -> None:
    """The clock was set while no agent ran: what the last one kept is dated all the same."""
    clock.synced, clock.wall_ms = False, 0
    first = Ring(tmp_path / "ring.db", "f" * 16, clock)
    Collector([], Alarms({}), first, clock).tick()
    first.close()
    clock.pass_ms(10_000)
    clock.synced, clock.wall_ms = True, 1_784_970_508_000
    second = Ring(tmp_path / "ring.db", "f" * 16, clock)
    Collector([], Alarms({}), second, clock, sample_s=3600).tick()
    second.take(1)
    (row,) = second.take(1)
    assert (row.time_ms, row.clock) == (1_784_970_498_000, "redated")
    second.close()


def test_the_time_between_samples_changes_at_once(ring: Ring, clock: FakeClock) -> None:
    """Live mode does not wait for a sample that was planned for later."""
    collector = Collector([], Alarms({}), ring, clock, sample_s=300)
    collector.tick()
    clock.pass_ms(5000)
    collector.sample_s = 5
    collector.tick()
    assert len(ring.take(9)) == 2


def test_ticks_that_are_a_little_early_end_a_hold(ring: Ring, clock: FakeClock) -> None:
    """5 s of hold are one period of ticks, not two: alarms are decided within 10 s of a reading."""
    collector = Collector([Counters("disk", lambda: FULL)], Alarms(DEFAULTS), ring, clock)
    collector.tick()
    clock.pass_ms(4990)
    _, decisions = collector.tick()
    assert len(decisions) == 1


def test_connections_may_come_and_go_while_they_are_read() -> None:
    """Counters are read in one thread while others open and close connections."""
    links, stop = Links(), threading.Event()

    def come_and_go(name: str) -> None:
        number = 0
        while not stop.is_set():
            with socket.socket() as one:
                links.watch(f"{name}{number % 50}", one)
                links.forget(f"{name}{number % 50}")
            number += 1

    threads = [threading.Thread(target=come_and_go, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            links.read(0.0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
