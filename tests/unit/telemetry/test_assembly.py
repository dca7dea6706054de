"""A station as it is assembled: polled without waiting, and without new samples if so told."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from telemetry_fakes import FakeClock

from device.telemetry.assembly import Assembly
from device.telemetry.config import TelemetryConfig
from device.telemetry.mqtt.session import Session
from device.telemetry.ring import ALARM, SAMPLE, Ring
from edgekit.contracts.series import Values
from edgekit.errors import RingError


class FullMemory:
    """A sensor whose reading raises an alarm."""

    name = "full"

    def read(self, now_s: float) -> Values:
        del now_s
        return {"engine_memory_used_ratio": 0.99}


class Device:
    """A device whose broker refuses connections.

    Args:
        folder: Of its ring.
        options: Of the assembly.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock, self.woken = FakeClock(), threading.Event()
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        nothing = folder / "nothing.pem"
        config = TelemetryConfig(
            broker="127.0.0.1",
            port=port,
            ca=nothing,
            certificate=nothing,
            key=nothing,
            tenant="acme",
            device="orin-1",
            ring=folder / "ring.db",
        )
        self.assembly = Assembly(
            config=config,
            clock=self.clock,
            is_encrypted=False,
            make_ring=self._make_ring,
            make_session=self._make_session,
            **{"machine": [FullMemory()], **options},
        )

    def _make_ring(self, *arguments: Any) -> Ring:
        self.ring = Ring(*arguments)
        return self.ring

    def _make_session(self, *arguments: Any, **options: Any) -> Session:
        self.session = Session(*arguments, **options, woken=self.woken.set)
        return self.session


def test_a_poll_does_what_is_due_and_does_not_wait(tmp_path: Path) -> None:
    """Whoever has many stations is told when each wants to be called, and is never held up."""
    device = Device(tmp_path, turn_s=3.0)
    with device.assembly.station() as station:
        began_s = time.monotonic()
        waits = []
        for _ in range(20):  # a minute of three seconds each
            waits.append(station.poll())
            device.clock.pass_ms(3000)
        assert time.monotonic() - began_s < 2.0
        assert all(0 <= wait_s <= 3.0 for wait_s in waits)
        assert 5 <= len(device.ring.take(100, SAMPLE)) <= 7
        assert len(device.ring.take(100, ALARM)) == 1


def test_a_station_may_add_no_samples(tmp_path: Path) -> None:
    """A ring that is being emptied gets no samples, but alarms all the same."""
    device = Device(tmp_path, may_sample=False)
    with device.assembly.station() as station:
        for _ in range(10):
            station.poll()
            device.clock.pass_ms(5000)
        assert device.ring.take(100, SAMPLE) == []
        assert len(device.ring.take(100, ALARM)) == 1


def test_a_session_wakes_whoever_polls(tmp_path: Path) -> None:
    """What happens on a connection is told at once, and taken in by the next poll."""
    device = Device(tmp_path)
    with device.assembly.station() as station:
        station.poll()
        assert device.woken.wait(10), "nobody was woken"
        assert device.session.counts["link"] == 0
        station.poll()
        assert device.session.counts["link"] == 1
        assert device.session.due_s > device.clock.monotonic_ms() / 1000 - 1e-9


def test_bytes_are_counted_while_the_ring_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an alarm that waits to be kept, too, the budget holds and readings are those of now."""

    def read_only(*_: object) -> list[int]:
        raise RingError("attempt to write a readonly database")

    class Busy:
        """A link that has carried more at every look."""

        name = "busy"
        looks = 0

        def read(self, now_s: float) -> Values:
            del now_s
            self.looks += 1
            return {"link_sent_bytes_total.mqtt": 1000 * self.looks}

    device = Device(tmp_path, machine=[FullMemory(), busy := Busy()])
    with device.assembly.station() as station:
        station.poll()
        monkeypatch.setattr(device.ring, "put", read_only)
        for _ in range(9):
            device.clock.pass_ms(5000)
            station.poll()
        assert busy.looks == 10
        assert station.readings["link_sent_bytes_total.mqtt"] == 10_000
        assert station.values()["mqtt_day_bytes"] == 10_000
