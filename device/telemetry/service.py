"""The agent's telemetry: one thread that collects, publishes and takes notices.

Whatever fails in it, the disk, the broker or the network, is logged and tried again; nothing that
serves requests waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

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
from device.telemetry.station import TURN_S, Pace, Parts, Station
from edgekit.batch_encoding import compress
from edgekit.contracts.series import Values
from edgekit.errors import EdgekitError

logger = logging.getLogger(__name__)

RETRY_S = 60.0
"""Between two tries to open the ring."""
STOP_S = 10.0
FETCHED = ("config", "job", "logs")
"""Notices of something that is fetched."""
_DAY_MS = 86_400_000
_ROOT = Path("/")


class Telemetry:
    """Runs a station in a thread of its own.

    Args:
        config: What it is told.
        counters: Other parts' readings by name, such as the engine's; called in its thread.
        details: More facts for the birth, such as the model's name; called at every connect.
        on_notice: Called with notices of what is to be fetched; it must not wait.
        clock: Tells the time.
        turn_s: Longest wait of a turn, in real seconds whatever the clock says.
        windows: Of the session's back-off.
        is_encrypted: False is for tests: no TLS.

    Raises:
        MissingExtraError: The encoding's compressor is not installed.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        *,
        counters: Mapping[str, Callable[[], Values]] | None = None,
        details: Callable[[], Details] | None = None,
        on_notice: Handler | None = None,
        clock: Clock | None = None,
        turn_s: float = TURN_S,
        windows: Windows | None = None,
        is_encrypted: bool = True,
    ) -> None:
        self._config = config
        self._counters = dict(counters or {})
        self._details = details or dict
        self._on_notice = on_notice
        self._clock = clock or SystemClock()
        self._pace = Pace(config.sample_s, config.batch_s, turn_s)
        self._windows = windows or Windows()
        self._is_encrypted = is_encrypted
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        compress(b"", config.encoding)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Say goodbye to the broker and close the ring; whether that was done in time."""
        self._stopping.set()
        if self._thread is None:
            return True
        self._thread.join(STOP_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Work until it is stopped; a ring that cannot be opened is tried again."""
        while not self._stopping.is_set():
            try:
                with self._station() as station:
                    while not self._stopping.is_set():
                        station.turn()
                    station.close()
            except EdgekitError as error:
                logger.error("no telemetry: %s; next try in %.0f s", error, RETRY_S)  # noqa: TRY400
            except Exception:  # a fault of ours must not end the agent
                logger.exception("telemetry failed; next try in %.0f s", RETRY_S)
            self._stopping.wait(RETRY_S)

    @contextlib.contextmanager
    def _station(self) -> Iterator[Station]:
        """Put a station together, and take it apart.

        Raises:
            RingError: The ring cannot be opened.
            StorageError: The file of the day's bytes cannot.
        """
        config, clock = self._config, self._clock
        links, alarms = Links(), Alarms(config.alarms)
        with contextlib.ExitStack() as closing:
            limits = Limits(config.ring_bytes, int(config.ring_days * _DAY_MS))
            ring = Ring(config.ring, boot_id(), clock, limits)
            closing.callback(ring.close)
            day = DayBytes(_beside(config.ring), config.daily_bytes, clock)
            closing.callback(day.close)
            healths = Healths(
                config.identity, lambda: ring.boot, clock, lambda: alarms.raised, self._facts
            )
            session = self._session(healths, links)
            closing.callback(session.close)
            live = Live(clock)
            probe = self._probe(closing)

            def own() -> Values:
                return station.values()  # made below, and asked by it

            sensors = self._sensors(
                closing, links, Counters("ring", ring.values), Counters("mqtt", own)
            )
            if probe is not None:
                sensors.append(probe)
            parts = Parts(
                clock=clock,
                collector=Collector(sensors, alarms, ring, clock, config.sample_s),
                session=session,
                publisher=Publisher(ring, session, config.identity, clock, config.encoding),
                notices=Notices(config.identity, clock, self._handlers(live)),
                healths=healths,
                live=live,
                day=day,
                probe=probe,
            )
            station = Station(parts, self._pace)
            yield station

    def _handlers(self, live: Live) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {"live": live.start}
        if self._on_notice is not None:
            handlers |= dict.fromkeys(FETCHED, self._on_notice)
        return handlers

    def _probe(self, closing: contextlib.ExitStack) -> EchoProbe | None:
        if self._config.probe is None:
            return None
        probe = EchoProbe(self._config.probe_address, day_bytes=self._config.probe_daily_bytes)
        closing.callback(probe.close)
        return probe

    def _sensors(self, closing: contextlib.ExitStack, *ours: Sensor) -> list[Sensor]:
        sensors: list[Sensor] = []
        if self._config.tegrastats:
            tegrastats = Tegrastats()
            closing.callback(tegrastats.close)
            sensors.append(tegrastats)  # first: of two readings the later one counts
        mounts = sorted({_ROOT, _mount_of(self._config.ring)})
        sensors += [Sysfs(), Proc(), Storage(mounts), Board(), *ours]
        sensors += [Counters(name, source) for name, source in self._counters.items()]
        if self._config.modem:
            modem = Modem()
            closing.callback(modem.close)
            sensors.append(modem)
        return sensors

    def _session(self, healths: Healths, links: Links) -> Session:
        config = self._config
        files = TlsFiles(config.ca, config.certificate, config.key)
        return Session(
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
            contexts=TlsContexts(files) if self._is_encrypted else None,
            links=links,
            clock=self._clock,
            windows=self._windows,
        )

    def _facts(self) -> Details:
        return {**machine_details(), **self._details(), **identity_details(self._config)}


def _mount_of(path: Path) -> Path:
    """Return where the file system of a file that may not be there yet is mounted."""
    path = path.absolute()
    while not path.is_mount():
        path = path.parent
    return path


def _beside(ring: Path) -> Path:
    """Return the file of the day's bytes."""
    return ring.with_name(ring.name + ".bytes.json")
