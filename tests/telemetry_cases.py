"""What tests of telemetry over a real broker share: a store, a clock that runs fast, a proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosquitto_broker import Broker
from mqtt_certificates import Identity
from mqtt_client import Client

from device.telemetry.config import TelemetryConfig
from device.telemetry.mqtt.backoff import Windows
from device.telemetry.service import Telemetry
from edgekit.batch_encoding import decompress
from edgekit.contracts.seq_ranges import ranges_of
from edgekit.contracts.telemetry import (
    Alarm,
    Batch,
    CommandNotice,
    Health,
    Sample,
    StoreAcknowledgement,
)
from edgekit.contracts.topics import Device, Topic, up_filters

ORIN = Device("acme", "orin-1")
SPEED = 20.0


class FastClock:
    """A device's clock whose seconds are short; NTP holds it.

    Args:
        speed: Its seconds in one real second.
    """

    def __init__(self, speed: float = SPEED) -> None:
        self.speed = speed
        self._began_s, self._wall_s = time.monotonic(), time.time()

    def now_s(self) -> float:
        return 1000 + (time.monotonic() - self._began_s) * self.speed

    def monotonic_ms(self) -> int:
        return int(1000 * self.now_s())

    def time_ms(self) -> int:
        return int(1000 * (self._wall_s + self.now_s()))

    def is_synced(self) -> bool:
        return True


@dataclass
class Store:
    """What ingest does, in memory: it keeps every sample and alarm once and acknowledges it.

    Attributes:
        broker: Where it listens.
        samples: (boot, seq) to the sample.
        alarms: (boot, seq) to the alarm.
        healths: In order.
        double: How often something came that it had.
        answers: Whether it acknowledges; what comes meanwhile is not kept.
    """

    broker: Broker
    samples: dict[tuple[str, int], Sample] = field(default_factory=dict)
    alarms: dict[tuple[str, int], Alarm] = field(default_factory=dict)
    healths: list[Health] = field(default_factory=list)
    came: Counter[str] = field(default_factory=Counter)
    double: int = 0
    answers: bool = True
    loses_answers: bool = False
    _client: Client | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Store]:
        """Connect, with a session that outlives the broker's restarts."""
        self._client = Client(
            self.broker.service_port,
            "ingest-1",
            up_filters(),
            identity=self.broker.services.issue("ingest"),
            server_ca=self.broker.server_ca,
            clean_start=False,
        )
        self._client.take = self._take
        with self._client:
            yield self

    def wait_until(self, condition: Callable[[], bool], what: str, wait_s: float = 20.0) -> None:
        """Wait for something that messages bring about."""
        assert self._client is not None
        self._client.wait_until(condition, what, wait_s)

    def wait_for_samples(self, count: int) -> None:
        """Wait for that many samples in all."""
        self.wait_until(lambda: len(self.samples) >= count, f"{count} samples")

    def wait_for_alarms(self, count: int) -> None:
        """Wait for that many alarms in all."""
        self.wait_until(lambda: len(self.alarms) >= count, f"{count} alarms")

    def _take(self, message: Any) -> None:
        topic = Topic.parse(message.topic)
        kind = f"{topic.channel}/{topic.type}" if topic.channel != "a" else "alarm"
        self.came[kind] += 1
        if topic.channel == "status":
            self.healths.append(Health.from_bytes(message.payload))
            return
        if not self.answers:
            return
        if topic.channel == "a":
            alarm = Alarm.from_bytes(message.payload)
            assert alarm.alarm == topic.type
            self._keep(self.alarms, [alarm])
        elif topic.type == "sample":
            self._keep(self.samples, [Sample.from_bytes(message.payload)])
        else:
            ((_, encoding),) = message.properties.UserProperty
            batch = Batch.from_bytes(decompress(message.payload, encoding))
            self._keep(self.samples, batch.samples())

    def _keep(self, kept: dict[tuple[str, int], Any], rows: list[Any]) -> None:
        for row in rows:
            self.double += (row.boot, row.seq) in kept
            kept.setdefault((row.boot, row.seq), row)
        if self.loses_answers or self._client is None:
            return
        stored = {rows[0].boot: ranges_of(row.seq for row in rows)}
        self._client.client.publish(
            f"ek/{ORIN.path}/ack/store", StoreAcknowledgement(stored=stored).to_bytes(), qos=1
        )


def configuration(broker: Broker, folder: Path, **changes: Any) -> TelemetryConfig:
    """Return a device's configuration with a certificate of its own, paths in a folder."""
    identity: Identity = changes.pop("identity", None) or broker.device(ORIN)
    told: dict[str, Any] = {
        "broker": "localhost",
        "port": broker.device_port,
        "ca": broker.server_ca,
        "certificate": identity.certificate,
        "key": identity.key,
        "tenant": ORIN.tenant,
        "device": ORIN.device,
        "ring": folder / "telemetry/ring.db",
        "sample_s": 5.0,
        "batch_s": 20.0,
        "daily_bytes": 100_000_000,  # enough for this pace even where the UTC day has just begun
    }
    return TelemetryConfig(**{**told, **changes})


@contextlib.contextmanager
def telemetry(config: TelemetryConfig, clock: FastClock, **options: Any) -> Iterator[Telemetry]:
    """Run a device's telemetry."""
    options.setdefault("windows", Windows(first_s=5.0, busy_s=5.0, longest_s=20.0))
    running = Telemetry(config, clock=clock, turn_s=0.02, **options)
    running.start()
    try:
        yield running
    finally:
        assert running.stop(), "the telemetry does not end"


def notice(
    clock: FastClock, command: str, number: str, *, for_s: float = 600.0
) -> tuple[str, bytes]:
    """Return topic and payload of a notice."""
    now_ms = clock.time_ms()
    message = CommandNotice(
        id=number, command=command, issued_ms=now_ms, expires_ms=now_ms + int(1000 * for_s)
    )
    return f"ek/{ORIN.path}/cmd/{command}/{number}", message.to_bytes()


class Proxy:
    """A TCP relay that can swallow what comes back, or cut everything.

    Args:
        port: Where it relays to, on loopback.
        host: Where it listens.

    Attributes:
        port: Where it listens.
        swallows: Whether what the server sends is lost on the way.
        accepted: Connections so far.
        relayed_bytes: Bytes that went either way.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = port
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.swallows = False
        self.accepted = self.relayed_bytes = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def cut(self) -> None:
        """Close all connections, as a network that fails does not: both ends are told."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for one in self._open:
            one.close()

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                try:
                    server = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:  # the broker is down
                    client.shutdown(socket.SHUT_RDWR)
                    continue
                self._open.append(server)
                self.accepted += 1
                self._begin(self._relay, client, server, True)
                self._begin(self._relay, server, client, False)

    def _relay(self, source: socket.socket, sink: socket.socket, up: bool) -> None:  # noqa: FBT001
        with contextlib.suppress(OSError):
            source.settimeout(None)
            while data := source.recv(65536):
                self.relayed_bytes += len(data)
                if up or not self.swallows:
                    sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
