"""Ingest workers as processes, and devices that send to them, for tests against a real broker."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from child_process import ChildProcess
from fleet_cases import BOOT, batch_payload
from mqtt_client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgekit.batch_encoding import PROPERTY
from edgekit.contracts import seq_ranges
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.telemetry import StoreAcknowledgement
from edgekit.contracts.topics import Device

_STOP_S = 20.0


class WorkerProcess(ChildProcess):
    """One ``edgekit-fleet ingest``, which may be killed and started again.

    Args:
        folder: Where its log goes.
        store: The store's URL.
        broker: The broker's URL.
        name: Of the worker.
        options: More options.
        program: What Python runs; see ``killed_worker.py``.
    """

    LEAVE = signal.SIGKILL

    def __init__(
        self,
        folder: Path,
        store: str,
        broker: str,
        name: str = "w1",
        options: Sequence[str] = (),
        program: Sequence[str] = ("-m", "ota.cli"),
    ) -> None:
        super().__init__(folder / f"{name}.log")
        self._command = [
            *(sys.executable, *program, "ingest", "--store", store, "--broker", broker),
            *("--name", name, "--group-ms", "50", *options),
        ]

    def start(self) -> None:
        """Start it, and wait until it is connected."""
        connections = self._connections()
        self._begin(self._command)
        self._wait_for(
            lambda: self._connections() != connections, "the worker does not connect", _STOP_S
        )

    def wait(self) -> int:
        """Wait until it ends by itself; returns its exit code, minus the signal if it was one."""
        assert self._process is not None, "the worker is not running"
        self._process.wait(_STOP_S)
        return self._end(signal.SIGKILL)

    def _connections(self) -> int:
        return self.log.read_text().count("connected to the broker") if self.log.exists() else 0


class SendingDevice:
    """A device with rows that it keeps until the store has acknowledged them.

    Args:
        port: Of the broker, without access rules.
        device: Who it is.

    Attributes:
        stored: What the store has acknowledged of :data:`~fleet_cases.BOOT`.
        client: Its connection.
    """

    def __init__(self, port: int, device: Device) -> None:
        self.device = device
        self.client = Client(port, device.path, [f"ek/{device.path}/ack/+"], clean_start=False)
        self._sent: dict[Ranges, bytes] = {}

    def __enter__(self) -> SendingDevice:  # noqa: PYI034  # Self is of 3.11
        self.client.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.__exit__(kind, error, traceback)

    @property
    def stored(self) -> Ranges:
        """What the store has acknowledged."""
        messages = [
            StoreAcknowledgement.from_bytes(bytes(m.payload)) for m in list(self.client.messages)
        ]
        return seq_ranges.union(*(one.stored.get(BOOT, ()) for one in messages))

    def send(self, first: int, last: int) -> None:
        """Send samples as a batch, without waiting for anything."""
        payload = batch_payload(range(first, last + 1))
        self._sent[((first, last),)] = payload
        self.publish("m/batch", payload)

    def publish(self, kind: str, payload: bytes, encoding: str = "zstd-ek1") -> None:
        """Publish to a topic of its own, such as ``m/batch``, without waiting for anything."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = [(PROPERTY, encoding)]
        topic = f"ek/{self.device.path}/{kind}"
        self.client.client.publish(topic, payload, qos=1, properties=properties)

    def send_again(self) -> int:
        """Send all batches that are not acknowledged in full; returns how many."""
        stored = self.stored
        left = [p for seq, p in self._sent.items() if seq_ranges.difference(seq, stored)]
        for payload in left:
            self.publish("m/batch", payload)
        return len(left)

    def wait_until_stored(self, last: int, wait_s: float = 60.0, again_s: float = 5.0) -> int:
        """Wait until samples 1 to ``last`` are acknowledged; what stays silent is sent again.

        Returns:
            How many batches were sent again.
        """
        deadline, again, repeats = time.monotonic() + wait_s, time.monotonic() + again_s, 0
        while self.stored != ((1, last),):
            assert time.monotonic() < deadline, f"{self.device.path}: stored are {self.stored}"
            if time.monotonic() > again:
                repeats += self.send_again()
                again = time.monotonic() + again_s
            time.sleep(0.05)
        return repeats
