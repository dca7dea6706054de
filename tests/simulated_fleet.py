"""Simulated devices as processes that are killed, and the accounts of what became of their rows."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from child_process import ChildProcess
from mosquitto_broker import Broker
from sqlalchemy import select

from device.simulator.rings import readings_digest
from ota.store.database import Store
from ota.store.read import batches_after
from ota.store.tables import AlarmTable, DeviceTable

_STOP_S = 120.0
Key = tuple[str, str, int]
"""Device, boot, number."""


class SimulatorProcess(ChildProcess):
    """One ``python -m device.simulator``, which may be killed and started again with its rings.

    Args:
        broker: Whose devices they are.
        folder: Where rings, certificates and logs go; several processes may share it.
        host: Where devices connect.
        first: Number of the first device.
        devices: How many.
        options: More options.
    """

    LEAVE = signal.SIGKILL

    def __init__(
        self,
        broker: Broker,
        folder: Path,
        *,
        host: str = "localhost",
        first: int = 0,
        devices: int,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(folder / f"simulator-{first}.log")
        self.promises = folder / f"promises-{first}.log"
        self._command = [
            *(sys.executable, "-m", "device.simulator", "--broker", f"{host}:{broker.device_port}"),
            *("--ca", str(broker.server_ca), "--certificates", str(folder / "certificates")),
            *("--make-certificates", str(broker.devices.bundle())),
            *("--rings", str(folder / "rings"), "--promises", str(self.promises)),
            *("--first", str(first), "--devices", str(devices), *options),
        ]

    def start(self, *options: str) -> None:
        """Start it, with some more options."""
        self._begin([*self._command, *options], stdout=subprocess.PIPE, text=True)

    def report(self) -> dict[str, int]:
        """End it as an operator would; return what it reports."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait(_STOP_S)

    def wait(self, wait_s: float) -> dict[str, int]:
        """Wait until it ends by itself; return its report."""
        assert self._process is not None, "the simulator is not running"
        try:
            said, _ = self._process.communicate(timeout=wait_s)
            assert self._process.returncode == 0, self.log.read_text()[-2000:]
        finally:
            self.kill()
        report: dict[str, int] = json.loads(said)
        return report


@dataclass
class Accounts:
    """Both sides' rows.

    Attributes:
        promised: What rings took, with the digest of its readings.
        stored: How often the store has each.
        other: Samples whose readings are others in the store than in the ring.
        given: Rows that rings have numbered, of the numbers' marks in their files.
        left: Rows that are in rings still.
        dropped: Rows that rings have dropped and counted.
    """

    promised: dict[Key, int] = field(default_factory=dict)
    stored: Counter[Key] = field(default_factory=Counter)
    other: list[Key] = field(default_factory=list)
    given: set[Key] = field(default_factory=set)
    left: int = 0
    dropped: int = 0

    def check(self) -> None:
        """Hold that every row arrived once: none twice, none missing, none from nowhere.

        A row that a process had committed when it was killed is not in the log of what it promised,
        yet it is in the file: the numbers of both are compared, too.
        """
        double = [key for key, times in self.stored.items() if times > 1]
        assert not double, f"{len(double)} rows are stored twice: {double[:5]}"
        missing = self.promised.keys() - self.stored.keys()
        assert len(missing) <= self.dropped, f"{len(missing)} lost: {sorted(missing)[:5]}"
        assert self.left == 0, f"{self.left} rows are in rings still"
        assert not self.other, f"{len(self.other)} rows are others: {self.other[:5]}"
        assert len(self.given - self.stored.keys()) <= self.dropped
        strange = self.stored.keys() - self.given
        assert not strange, f"{len(strange)} rows came from nowhere: {sorted(strange)[:5]}"


def take_accounts(folder: Path, store: Store) -> Accounts:
    """Count both sides; nothing may be running.

    Args:
        folder: Of the simulated devices.
        store: Where all should be.
    """
    accounts = Accounts()
    for log in sorted(folder.glob("promises-*.log")):
        for line in log.read_text().splitlines():
            device, boot, seq, _, said = line.split()
            key = (device, boot, int(seq))
            assert key not in accounts.promised, f"number {key} was given twice"
            accounts.promised[key] = int(said)
    for key, digest in _stored(store):
        accounts.stored[key] += 1
        if accounts.promised.get(key, digest) != digest:
            accounts.other.append(key)
    for ring in sorted((folder / "rings").glob("*.db")):
        _read_ring(ring, accounts)
    return accounts


def _stored(store: Store) -> Iterator[tuple[Key, int]]:
    """Yield every row of the store with its digest; 0 is an alarm's."""
    cursor = 0
    while batches := batches_after(store, cursor, 500):
        for stored in batches:
            for sample in stored.batch().samples():
                key = (stored.device, sample.boot, sample.seq)
                yield key, readings_digest(sample.values)
        cursor = batches[-1].cursor
    query = select(DeviceTable.device, AlarmTable.boot, AlarmTable.seq)
    query = query.join(DeviceTable, DeviceTable.id == AlarmTable.device_id)
    with store.reading() as connection:
        for device, boot, seq in connection.execute(query):
            yield (device, boot, seq), 0


def _read_ring(path: Path, accounts: Accounts) -> None:
    db = sqlite3.connect(path)
    try:
        accounts.left += db.execute("SELECT count(*) FROM row").fetchone()[0]
        dropped = db.execute("SELECT coalesce(sum(rows), 0) FROM dropped").fetchone()[0]
        accounts.dropped += dropped
        for boot, next_seq in db.execute("SELECT boot, next_seq FROM life").fetchall():
            accounts.given.update((path.stem, boot, seq) for seq in range(1, next_seq))
    finally:
        db.close()
