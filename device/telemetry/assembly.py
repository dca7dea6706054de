"""Puts one device's telemetry together: ring, sensors, session, publisher; and takes it apart.

The agent has one station of this machine's sensors (``device.telemetry.service``); a simulation has
hundreds of made-up ones (``device.simulator``). Both run what is assembled here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from device.telemetry.alarms import Alarms
from device.telemetry.clock import Clock, SystemClock, boot_id
from device.telemetry.collector import Collector
from device.telemetry.config import TelemetryConfig
from device.telemetry.identity import identity_details
from device.telemetry.mqtt.backoff import Windows
from device.telemetry.mqtt.connection import Endpoint
from device.telemetry.mqtt.day_bytes import DayBytes
from device.telemetry.mqtt.health import Details, Healths, machine_details
from device.telemetry.mqtt.live import Live
from device.telemetry.mqtt.notices import Handler, Notices
from device.telemetry.mqtt.publisher import Publisher
from device.telemetry.mqtt.session import Session
from device.telemetry.mqtt.tls import TlsContexts, TlsFiles
from device.telemetry.ring import Limits, Ring
from device.telemetry.sensors.board import Board
from device.telemetry.sensors.counters import Counters
from device.telemetry.sensors.modem import Modem
from device.telemetry.sensors.probe import EchoProbe
from device.telemetry.sensors.proc import Proc
from device.telemetry.sensors.sensor import Sensor
from device.telemetry.sensors.storage import Storage
from device.telemetry.sensors.sysfs import Sysfs
from device.telemetry.sensors.tcp_info import Links
from device.telemetry.sensors.tegrastats_process import Tegrastats
from device.telemetry.station import TURN_S, Parts, Station
from device.telemetry.tuning import Tuning
from edgekit.contracts.series import Values
from edgekit.contracts.telemetry import COMMANDS

_DAY_MS = 86_400_000
_ROOT = Path("/")


class MakeSession(Protocol):
    """Makes a session: :class:`Session` itself, or one that can do more."""

    def __call__(
        self,
        endpoint: Endpoint,
        filters: Sequence[str],
        will: Callable[[], tuple[str, bytes]],
        *,
        contexts: TlsContexts | None,
        links: Links,
        clock: Clock,
        windows: Windows | None = None,
    ) -> Session:
        """Return a session that has not begun."""
        ...


MakeRing = Callable[[Path, str, Clock, Limits], Ring]


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What a station is made of, and how.

    Attributes:
        config: What the telemetry is told.
        counters: Other parts' readings by name, such as the engine's.
        details: More facts for the birth, such as the model's name; called at every connect.
        tuning: Returns what holds of the settings that may change; the configuration's, if None.
        on_notice: Called with notices of what is to be fetched; it must not wait. Without it they
            are unknown.
        on_connect: Called once a broker has accepted the device; it must not wait.
        live: Whether samples are sent live; None for one that nobody starts.
        clock: Tells the time.
        turn_s: Longest wait of a turn.
        windows: Of the session's back-off.
        is_encrypted: False is for tests: no TLS.
        machine: Sensors of the machine; None for those of this one.
        make_ring: Makes the ring.
        make_session: Makes the session.
        may_sample: False adds no samples to the ring.
    """

    config: TelemetryConfig
    counters: Mapping[str, Callable[[], Values]] = field(default_factory=dict)
    details: Callable[[], Details] = dict
    tuning: Callable[[], Tuning] | None = None
    on_notice: Handler | None = None
    on_connect: Callable[[], None] | None = None
    live: Live | None = None
    clock: Clock = field(default_factory=SystemClock)
    turn_s: float = TURN_S
    windows: Windows = field(default_factory=Windows)
    is_encrypted: bool = True
    machine: Sequence[Sensor] | None = None
    make_ring: MakeRing = Ring
    make_session: MakeSession = Session
    may_sample: bool = True

    @contextlib.contextmanager
    def station(self) -> Iterator[Station]:
        """Put a station together, and take it apart.

        Raises:
            RingError: The ring cannot be opened.
            StorageError: At the end, the file of the day's bytes cannot be written.
        """
        config, clock = self.config, self.clock
        tuning = config.tuning if self.tuning is None else self.tuning()
        links, alarms = Links(), Alarms(tuning.rules)
        with contextlib.ExitStack() as closing:
            limits = Limits(config.ring_bytes, int(config.ring_days * _DAY_MS))
            ring = self.make_ring(config.ring, boot_id(), clock, limits)
            closing.callback(ring.close)
            day = DayBytes(_beside(config.ring), tuning.daily_bytes, clock)
            closing.callback(day.close)
            healths = Healths(
                config.identity, lambda: ring.boot, clock, lambda: alarms.raised, self._facts
            )
            session = self._session(healths, links)
            # A fault of ours is a loss: after a goodbye nobody would be told that it is down.
            closing.push(lambda kind, *_: session.close(is_lost=kind is not None))
            probe = self._probe(closing, tuning)

            def own() -> Values:
                return station.values()  # made below, and asked by it

            sensors = self._sensors(
                closing, links, Counters("ring", ring.values), Counters("mqtt", own)
            )
            if probe is not None:
                sensors.append(probe)
            parts = Parts(
                clock=clock,
                alarms=alarms,
                collector=Collector(sensors, alarms, ring, clock, tuning.sample_s),
                session=session,
                publisher=Publisher(ring, session, config.identity, clock, config.encoding),
                notices=Notices(config.identity, clock, self._handlers()),
                healths=healths,
                live=self.live or Live(clock),
                day=day,
                probe=probe,
                on_connect=self.on_connect,
            )
            station = Station(parts, tuning, self.turn_s, may_sample=self.may_sample)
            yield station

    def _handlers(self) -> dict[str, Handler]:
        """Return what takes notices: every kind is of something that is fetched."""
        return {} if self.on_notice is None else dict.fromkeys(COMMANDS, self.on_notice)

    def _probe(self, closing: contextlib.ExitStack, tuning: Tuning) -> EchoProbe | None:
        if self.config.probe is None:
            return None
        probe = EchoProbe(self.config.probe_address, day_bytes=tuning.probe_daily_bytes)
        closing.callback(probe.close)
        return probe

    def _sensors(self, closing: contextlib.ExitStack, *ours: Sensor) -> list[Sensor]:
        sensors = [*(self._machine(closing) if self.machine is None else self.machine), *ours]
        sensors += [Counters(name, source) for name, source in self.counters.items()]
        if self.config.modem:
            modem = Modem()
            closing.callback(modem.close)
            sensors.append(modem)
        return sensors

    def _machine(self, closing: contextlib.ExitStack) -> Iterator[Sensor]:
        if self.config.tegrastats:
            tegrastats = Tegrastats()
            closing.callback(tegrastats.close)
            yield tegrastats  # first: of two readings the later one counts
        mounts = sorted({_ROOT, _mount_of(self.config.ring)})
        yield from (Sysfs(), Proc(), Storage(mounts), Board())

    def _session(self, healths: Healths, links: Links) -> Session:
        config = self.config
        files = TlsFiles(config.ca, config.certificate, config.key)
        return self.make_session(
            Endpoint(
                config.broker,
                config.port,
                config.identity.path,
                config.keepalive_s,
                config.session_expiry_s,
                config.will_delay_s,
            ),
            config.identity.down_filters,
            healths.will,
            contexts=TlsContexts(files) if self.is_encrypted else None,
            links=links,
            clock=self.clock,
            windows=self.windows,
        )

    def _facts(self) -> Details:
        return {**machine_details(), **self.details(), **identity_details(self.config)}


def _mount_of(path: Path) -> Path:
    """Return where the file system of a file that may not be there yet is mounted."""
    path = path.absolute()
    while not path.is_mount():
        path = path.parent
    return path


def _beside(ring: Path) -> Path:
    """Return the file of the day's bytes."""
    return ring.with_name(ring.name + ".bytes.json")
