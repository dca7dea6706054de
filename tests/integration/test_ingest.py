"""Ingest against a real broker and database: every sample once, whoever is killed when."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fleet_cases import BOOT, DEVICE, alarm, batch_payload, health, sample, stored_samples
from fleet_workers import SendingDevice, WorkerProcess
from mosquitto_broker import Broker
from mqtt_client import Client
from postgres_server import Postgres

from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.topics import Device
from ota.store.database import connect
from ota.store.read import active_alarms, devices
from ota.store.schema import migrate, open_store

CHILD = Path(__file__).parents[1] / "killed_worker.py"
OTHERS = [Device("acme", f"orin-{number}") for number in range(2, 5)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def store(store_url: str) -> str:
    with closing(connect(store_url)) as plain:
        migrate(plain)
    return store_url


@pytest.fixture
def file_store(tmp_path: Path) -> str:
    """A store of SQLite, where the kind of database makes no difference."""
    file = f"sqlite:///{tmp_path}/file.db"
    with closing(connect(file)) as plain:
        migrate(plain)
    return file


def url(broker: Broker) -> str:
    return f"mqtt://127.0.0.1:{broker.plain_port}"


def stored_once(store: str, wanted: dict[Device, int]) -> None:
    """Hold the store to samples 1 to a number of each device, each there once."""
    with closing(open_store(store)) as opened:
        found = stored_samples(opened)
    assert set(found.values()) == {1}
    assert set(found) == {
        (device.path.replace("/device/", "/"), BOOT, seq)
        for device, last in wanted.items()
        for seq in range(1, last + 1)
    }


def test_all_kinds_of_messages_arrive(tmp_path: Path, broker: Broker, store: str) -> None:
    """Batches in every encoding, single samples, alarms and births are stored and acknowledged."""
    with (
        WorkerProcess(tmp_path, store, url(broker)) as worker,
        SendingDevice(broker.plain_port, DEVICE) as device,
    ):
        device.publish("status/health", health().to_bytes())
        for first, encoding in ((1, "zstd-ek1"), (11, "zstd"), (21, "json")):
            payload = batch_payload(range(first, first + 10), encoding=encoding)
            device.publish("m/batch", payload, encoding)
        device.publish("m/sample", sample(31).to_bytes(), "json")
        device.publish("a/temperature", alarm(32).to_bytes(), "json")
        device.wait_until_stored(32)
        assert worker.stop() == 0
    stored_once(store, {DEVICE: 31})
    with closing(open_store(store)) as opened:
        [found] = devices(opened)
        [raised] = active_alarms(opened)
    assert (found.state, found.boot) == ("up", BOOT)
    assert raised.seq == 32


def test_killed_workers_lose_and_repeat_nothing(tmp_path: Path, broker: Broker, store: str) -> None:
    """A worker that is killed again and again stores each sample once, by the broker alone."""
    kill_and_count(tmp_path, broker, store, kills=2, batches=60, seed=1)


@pytest.mark.parametrize("point", ["transaction", "committed", "acknowledged"])
def test_a_kill_at_each_step_loses_and_repeats_nothing(
    tmp_path: Path, broker: Broker, store: str, point: str
) -> None:
    """Killed in the transaction, after the commit, or before the broker has its acknowledgement."""
    program = (str(CHILD), point)
    with (
        WorkerProcess(tmp_path, store, url(broker), program=program) as killed,
        SendingDevice(broker.plain_port, DEVICE) as device,
    ):
        device.send(1, 5)
        device.send(4, 9)
        assert killed.wait() == -signal.SIGKILL
        with closing(open_store(store)) as opened:
            assert bool(stored_samples(opened)) == (point != "transaction")
        with WorkerProcess(tmp_path, store, url(broker)) as worker:
            device.send(10, 12)
            assert device.wait_until_stored(12, again_s=60) == 0
            assert worker.stop() == 0
    stored_once(store, {DEVICE: 12})


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_hold_the_others_up(
    tmp_path: Path, broker: Broker, postgres: Postgres
) -> None:
    """The server ends its transaction after a while; when it goes on, it repeats nothing."""
    store = postgres.database()
    with closing(connect(store)) as plain:
        migrate(plain)
    with (
        WorkerProcess(tmp_path, store, url(broker), program=(str(CHILD), "frozen")) as frozen,
        SendingDevice(broker.plain_port, DEVICE) as device,
    ):
        device.send(1, 5)
        wait_until_stopped(frozen.pid)
        with WorkerProcess(tmp_path, store, url(broker), "w2") as other:
            for first in range(1, 100, 5):
                device.send(first, first + 4)
            device.client.wait_for(1, 60)
            assert device.stored
            os.kill(frozen.pid, signal.SIGCONT)
            device.wait_until_stored(100, again_s=60)
            assert (frozen.stop(), other.stop()) == (0, 0)
    stored_once(store, {DEVICE: 100})


def wait_until_stopped(pid: int) -> None:
    """Wait until a process is stopped by a signal."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_kills_lose_and_repeat_nothing(
    tmp_path: Path, broker: Broker, store: str, seed: int
) -> None:
    """Kills at many random points: in a group, in a commit, before and after acknowledgements."""
    kill_and_count(tmp_path, broker, store, kills=12, batches=300, seed=seed)


def kill_and_count(
    tmp_path: Path, broker: Broker, store: str, *, kills: int, batches: int, seed: int
) -> None:
    """Kill a worker at random times while devices send; count what both sides have."""
    chance = random.Random(seed)
    senders = [DEVICE, *OTHERS]
    with ExitStack() as stack:
        devices = [stack.enter_context(SendingDevice(broker.plain_port, one)) for one in senders]
        worker = stack.enter_context(WorkerProcess(tmp_path, store, url(broker)))
        for part in range(kills):
            for number in range(part * batches // kills, (part + 1) * batches // kills):
                for device in devices:
                    device.send(number * 5 + 1, number * 5 + 5)
            time.sleep(chance.random() * 0.4)
            worker.kill()
            worker.start()
        # The broker gives again what was not acknowledged; the devices have sent nothing twice.
        deadline = time.monotonic() + 60
        with closing(open_store(store)) as opened:
            while len(stored_samples(opened)) < len(devices) * batches * 5:
                assert time.monotonic() < deadline, worker.log.read_text()[-2000:]
                time.sleep(0.2)
        for device in devices:
            device.wait_until_stored(batches * 5)
        assert worker.stop() == 0
    stored_once(store, dict.fromkeys(senders, batches * 5))


def test_two_workers_share_devices(tmp_path: Path, broker: Broker, store: str) -> None:
    """Batches that repeat and overlap, spread over two workers, are stored once."""
    chance = random.Random(5)
    with (
        WorkerProcess(tmp_path, store, url(broker), "w1") as first,
        WorkerProcess(tmp_path, store, url(broker), "w2") as second,
        SendingDevice(broker.plain_port, DEVICE) as device,
    ):
        starts = [*range(1, 500, 10), *range(5, 500, 10)]
        chance.shuffle(starts)
        for start in starts:
            device.send(start, start + 9 if start % 10 == 1 else start + 5)
        device.wait_until_stored(500)
        assert (first.stop(), second.stop()) == (0, 0)
    stored_once(store, {DEVICE: 500})


def test_a_database_that_restarts_loses_nothing(
    tmp_path: Path, broker: Broker, postgres: Postgres
) -> None:
    """Workers keep what they cannot store unacknowledged, and go on by themselves."""
    store = postgres.database()
    with closing(connect(store)) as plain:
        migrate(plain)
    with (
        WorkerProcess(tmp_path, store, url(broker)) as worker,
        SendingDevice(broker.plain_port, DEVICE) as device,
    ):
        for number in range(40):
            device.send(number * 5 + 1, number * 5 + 5)
            if number == 15:
                postgres.kill()
            time.sleep(0.01)
        time.sleep(0.5)
        before = device.stored
        time.sleep(0.3)
        assert device.stored == before != ((1, 200),)
        postgres.start()
        assert device.wait_until_stored(200, again_s=50) == 0
        assert "the store is away" in worker.log.read_text()
        assert worker.stop() == 0
    stored_once(store, {DEVICE: 200})


def test_a_broker_that_crashes_loses_nothing(
    tmp_path: Path, broker: Broker, file_store: str
) -> None:
    """What the broker forgets the devices send again; the store drops what it has."""
    with (
        WorkerProcess(tmp_path, file_store, url(broker)) as worker,
        SendingDevice(broker.plain_port, DEVICE) as device,
    ):
        for number in range(40):
            device.send(number * 5 + 1, number * 5 + 5)
            if number == 20:
                broker.restart(crash=True)
        device.wait_until_stored(200, again_s=3)
        assert worker.stop() == 0
    stored_once(file_store, {DEVICE: 200})


def test_refused_messages_are_counted_and_never_acknowledged(
    tmp_path: Path, broker: Broker, file_store: str
) -> None:
    """Nonsense is done with for the broker; what is right beside it is stored."""
    torn = batch_payload([1])[:20] + b"\x00" * 50
    with (
        WorkerProcess(tmp_path, file_store, url(broker)) as worker,
        SendingDevice(broker.plain_port, DEVICE) as device,
        Client(broker.plain_port, "reader", ["ek/+/device/+/ack/+"]) as reader,
    ):
        device.publish("m/batch", torn)
        device.publish("m/batch", canonical_bytes({"schema_version": 9}), "json")
        device.publish("m/nothing", b"{}")
        device.send(1, 10)
        device.wait_until_stored(10)
        assert reader.stays_at(1)
        assert worker.stop() == 0
        # Acknowledged to the broker: a worker of that name is not given it again.
        worker.start()
        device.send(11, 20)
        device.wait_until_stored(20)
        assert worker.stop() == 0
    said = worker.log.read_text()
    assert said.count("message refused") == 3
    stored_once(file_store, {DEVICE: 20})
    with closing(open_store(file_store)) as opened, opened.reading() as connection:
        rows = connection.exec_driver_sql("SELECT reason FROM rejects ORDER BY id").all()
    assert sorted(row[0] for row in rows) == ["message", "message", "topic"]


def test_a_stop_sends_the_acknowledgements_of_its_last_group(
    tmp_path: Path, broker: Broker, file_store: str
) -> None:
    """A hundred devices of one transaction are told before the worker ends; none sends again."""
    acknowledged = Client(broker.plain_port, "listener", ["ek/+/device/+/ack/store"])
    crowd = [Device("acme", f"orin-{number}") for number in range(100)]
    options = ["--group-ms", "2000"]
    with (
        WorkerProcess(tmp_path, file_store, url(broker), options=options) as worker,
        acknowledged,
        SendingDevice(broker.plain_port, DEVICE) as sender,
    ):
        for device in crowd:
            sender.device = device
            sender.send(1, 2)
        deadline = time.monotonic() + 30
        with closing(open_store(file_store)) as opened:
            while not devices(opened):
                assert time.monotonic() < deadline
        assert worker.stop() == 0
        time.sleep(0.5)
        with closing(open_store(file_store)) as opened:
            told = {f"ek/{one.tenant}/device/{one.device}/ack/store" for one in devices(opened)}
        assert {message.topic for message in acknowledged.messages} == told
