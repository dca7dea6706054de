"""Devices of one process, and the thread that turns over their stations.

Each device is the agent's telemetry as it is: ring, collector, alarms, publisher, session, station.
Made up are its sensors, its clock and its network's outages. One thread polls all stations when
they asked for it or their session was woken; connections have threads of their own.
"""

from __future__ import annotations

import contextlib
import heapq
import queue
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from device.simulator.clock import SimulatedClock
from device.simulator.day import MadeUpSensors
from device.simulator.outages import FailingSession, Outages
from device.simulator.rings import CountingRing, PromiseLog
from device.simulator.seeds import chance_of
from device.simulator.settings import Settings
from device.telemetry.alarm_rules import PERIOD_S
from device.telemetry.assembly import Assembly
from device.telemetry.clock import Clock, boot_id
from device.telemetry.mqtt.connection import Endpoint
from device.telemetry.ring import Limits, Ring
from device.telemetry.station import Station
from edgekit.errors import ConfigError

_LOOK_S = 0.5
"""How long a request to stop may go unseen."""
_CLOSERS = 32
_WOKEN_AT_ONCE = 64
FILES = 8
"""Of a device: the ring and its log, a socket, a pair, and what is open for a moment."""
OTHER_FILES = 64


class SimulatedDevice:
    """One device.

    Args:
        settings: Of the simulation.
        number: Of the device.
        clock: Everyone's.
        log: Where its ring writes down what it promised.
        woken: Called by other threads when it is to be polled.

    Raises:
        RingError: Its ring cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        number: int,
        clock: SimulatedClock,
        log: PromiseLog | None,
        woken: Callable[[], None],
    ) -> None:
        self._config, self._speed = settings.config(number), settings.speed
        limits = Limits(self._config.ring_bytes)
        self.ring = CountingRing(
            self._config.ring, boot_id(), clock, limits, self._config.device, log
        )
        chance = chance_of("outages", settings.seed, number)
        self._outages = Outages(settings.outages, chance)
        self._woken = woken
        self._session: FailingSession | None = None
        self._assembly = Assembly(
            config=self._config,
            clock=clock,
            machine=[MadeUpSensors(hash((settings.seed, number)), PERIOD_S, settings.spells_s)],
            make_ring=self._opened_ring,
            make_session=self._make_session,
            may_sample=not settings.drain,
        )
        self._closing = contextlib.ExitStack()
        self._station: Station | None = None

    def poll(self) -> float:
        """Start it, or let it do what is due; return device seconds until the next time."""
        if self._station is None:
            self._station = self._closing.enter_context(self._assembly.station())
        return self._station.poll()

    def is_drained(self) -> bool:
        """Whether its ring is empty."""
        return self.ring.values()["ring_rows"] == 0

    def close(self) -> Counter[str]:
        """Say goodbye, close the ring, and return what it did."""
        if self._station is not None:
            self._station.close()
        counts = Counter(self.ring.counts)
        if self._session is not None:
            counts.update(self._session.counts)
        values = self.ring.values()
        counts["left"] = values["ring_rows"]
        dropped = {name: value for name, value in values.items() if "dropped" in name}
        counts["dropped"] = sum(dropped.values())
        self._closing.close()
        self.ring.close()
        return counts

    def _opened_ring(self, path: Path, kernel: str, clock: Clock, limits: Limits) -> Ring:
        """Return the ring, which is open from the start: what it holds is to be counted."""
        del path, kernel, clock, limits
        return self.ring

    def _make_session(self, endpoint: Endpoint, *arguments: Any, **options: Any) -> FailingSession:
        # paho and the broker count the keepalive in real seconds, whole ones.
        keepalive_s = max(round(endpoint.keepalive_s / self._speed), 1)
        look_s = min(endpoint.look_s, keepalive_s / 20)
        self._session = FailingSession(
            replace(endpoint, keepalive_s=keepalive_s, look_s=look_s),
            *arguments,
            **options,
            outages=self._outages,
            woken=self._woken,
        )
        return self._session


class Fleet:
    """The devices of one process.

    Args:
        settings: Of them.
        clock: Everyone's.

    Raises:
        ConfigError: The process may not open as many files.
        RingError: A ring cannot be opened.
        StorageError: The log cannot be written.
    """

    def __init__(self, settings: Settings, clock: SimulatedClock) -> None:
        self._settings, self._clock = settings, clock
        self._woken: queue.SimpleQueue[int] = queue.SimpleQueue()
        _allow_files(settings.devices)
        self._log = None if settings.promises is None else PromiseLog(settings.promises)
        self._devices = [self._device(index) for index in range(settings.devices)]
        # The position of a start in the whole fleet is not known here: each draws its own.
        chance = chance_of("start", settings.seed, settings.first)
        now_s = time.monotonic()
        self._due = [
            now_s + chance.uniform(0, settings.spread_s) / settings.speed for _ in self._devices
        ]
        self._queue = [(due_s, index) for index, due_s in enumerate(self._due)]
        heapq.heapify(self._queue)
        self._left = list(range(settings.devices))
        self._late_s = 0.0

    def run(self, stopping: threading.Event, duration_s: float = float("inf")) -> None:
        """Turn over the stations until it is stopped, for real seconds, or until all are drained.

        Raises:
            StorageError: A device cannot start.
        """
        end_s = time.monotonic() + duration_s
        while not stopping.is_set() and (left_s := end_s - time.monotonic()) > 0:
            wait_s = min(self._poll_due(), left_s, _LOOK_S)
            for index in self._take_woken(wait_s):
                self._poll(index)
            if self._settings.drain and self._are_drained():
                return

    def close(self) -> dict[str, int]:
        """End all devices, many at a time; return what they did, summed.

        Beside the counts of rings and sessions: ``late_ms``, by how much a station was polled later
        than it asked for, at most; a machine that cannot keep up shows there.
        """
        total: Counter[str] = Counter()
        with ThreadPoolExecutor(_CLOSERS) as closers:
            for counts in closers.map(SimulatedDevice.close, self._devices):
                total.update(counts)
        if self._log is not None:
            self._log.close()
        return {"devices": len(self._devices), **total, "late_ms": round(1000 * self._late_s)}

    def _device(self, index: int) -> SimulatedDevice:
        number = self._settings.first + index
        woken = partial(self._woken.put, index)
        return SimulatedDevice(self._settings, number, self._clock, self._log, woken)

    def _are_drained(self) -> bool:
        """Whether all rings are empty; those that were are not asked again."""
        while self._left and self._devices[self._left[-1]].is_drained():
            self._left.pop()
        return not self._left

    def _poll_due(self) -> float:
        """Poll all devices that are due; return real seconds until the next one is."""
        for _ in range(len(self._devices)):
            due_s, index = self._queue[0]
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                return wait_s
            heapq.heappop(self._queue)
            if due_s == self._due[index]:  # else it was polled meanwhile, and stands elsewhere
                self._late_s = max(self._late_s, -wait_s)
                self._poll(index)
        return 0.0

    def _poll(self, index: int) -> None:
        wait_s = self._devices[index].poll() / self._clock.speed
        self._due[index] = time.monotonic() + max(wait_s, 0.0)
        heapq.heappush(self._queue, (self._due[index], index))

    def _take_woken(self, wait_s: float) -> set[int]:
        """Wait for devices that are woken; return which, each once."""
        found: set[int] = set()
        with contextlib.suppress(queue.Empty):
            found.add(self._woken.get(timeout=wait_s))
            while len(found) < _WOKEN_AT_ONCE:
                found.add(self._woken.get_nowait())
        return found


def _allow_files(devices: int) -> None:
    """Raise this process's limit to what its devices need.

    Raises:
        ConfigError: The system does not let it.
    """
    need = FILES * devices + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= need:
        return
    if hard < need:
        raise ConfigError(
            f"{devices} devices need {need} open files, and a process may have {hard}",
            "Use fewer devices in a process, or raise the limit (ulimit -n)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
