"""Ingest under hostile traffic, torn connections and wrong settings."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from child_process import free_port
from fleet_cases import DEVICE, stored_samples
from fleet_workers import SendingDevice, WorkerProcess
from mosquitto_broker import Broker
from prometheus_client.parser import text_string_to_metric_families
from spoiled_messages import spoiled_message

from edgekit.contracts.topics import Device
from ota.store.commit import MAX_REJECTS
from ota.store.database import connect
from ota.store.schema import migrate, open_store

MESSAGES = "edgekit_ingest_messages_total"
HOSTILE = Device("mallory", "orin-1")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/store.db"
    with closing(connect(url)) as plain:
        migrate(plain)
    return url


def metrics(port: int) -> dict[str, float]:
    """Return a worker's samples: name, and the values of its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def wait_for_messages(port: int, count: int) -> dict[str, float]:
    """Wait until a worker has received that many messages; return its metrics."""
    deadline = time.monotonic() + 60
    while True:
        found = metrics(port)
        received = sum(v for name, v in found.items() if name.startswith(f"{MESSAGES} "))
        if received >= count:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_ten_thousand_spoiled_messages_disturb_nobody(
    tmp_path: Path, broker: Broker, store: str
) -> None:
    """All are counted, few are kept, and a device beside them is stored and acknowledged."""
    chance, port = random.Random(3), free_port()
    options = ["--metrics-port", str(port)]
    with (
        WorkerProcess(
            tmp_path, store, f"mqtt://127.0.0.1:{broker.plain_port}", options=options
        ) as worker,
        SendingDevice(broker.plain_port, HOSTILE) as hostile,
        SendingDevice(broker.plain_port, DEVICE) as honest,
    ):
        for number in range(10_000):
            kind, encoding, payload = spoiled_message(chance)
            hostile.publish(kind, payload, encoding)
            if number % 100 == 0:
                honest.send(number // 20 + 1, number // 20 + 5)
        assert honest.wait_until_stored(500) == 0
        found = wait_for_messages(port, 10_100)
        assert worker.stop() == 0
    rejects = sum(v for name, v in found.items() if name.startswith("edgekit_ingest_rejects_total"))
    assert 8000 < rejects < 10_000
    assert found["edgekit_ingest_rejects_total message"] == rejects
    assert found["edgekit_ingest_store_up"] == found["edgekit_ingest_broker_up"] == 1
    with closing(open_store(store)) as opened:
        samples = stored_samples(opened, DEVICE)
        with opened.reading() as connection:
            [kept] = connection.exec_driver_sql("SELECT count(*) FROM rejects").one()
    assert len(samples) == 500
    assert set(samples.values()) == {1}
    assert 0 < kept < MAX_REJECTS / 10


def test_the_receive_maximum_bounds_what_is_held(
    tmp_path: Path, broker: Broker, store: str
) -> None:
    """While the store is locked, a worker holds no more than it was told, and then goes on."""
    port = free_port()
    options = ["--metrics-port", str(port), "--receive-maximum", "7", "--group-messages", "3"]
    with (
        WorkerProcess(
            tmp_path, store, f"mqtt://127.0.0.1:{broker.plain_port}", options=options
        ) as worker,
        SendingDevice(broker.plain_port, DEVICE) as device,
        closing(connect(store)) as other,
    ):
        with other.writing():
            for number in range(50):
                device.send(number * 2 + 1, number * 2 + 2)
            time.sleep(1)
            held = metrics(port)["edgekit_ingest_unacknowledged_messages"]
        assert held == 7
        device.wait_until_stored(100)
        assert worker.stop() == 0


def test_messages_without_a_promise_fill_no_memory(
    tmp_path: Path, broker: Broker, store: str
) -> None:
    """The receive maximum does not bound QoS 0: what is more than that is dropped, and counted."""
    port = free_port()
    options = ["--metrics-port", str(port), "--receive-maximum", "7", "--group-messages", "3"]
    address = f"mqtt://127.0.0.1:{broker.plain_port}"
    with (
        WorkerProcess(tmp_path, store, address, options=options) as worker,
        SendingDevice(broker.plain_port, HOSTILE) as hostile,
        SendingDevice(broker.plain_port, DEVICE) as device,
        closing(connect(store)) as other,
    ):
        with other.writing():
            device.send(1, 5)
            for _ in range(500):
                hostile.client.client.publish(f"ek/{HOSTILE.path}/m/batch", b"{}", qos=0)
            time.sleep(1)
            found = metrics(port)
        assert found["edgekit_ingest_unacknowledged_messages"] <= 7 + 7 + 3
        assert found["edgekit_ingest_dropped_messages_total"] > 400
        device.wait_until_stored(5)
        assert worker.stop() == 0


@pytest.mark.slow
def test_two_workers_of_one_name_are_told(tmp_path: Path, broker: Broker, store: str) -> None:
    """They take the session from each other without end, and the log says what it may be."""
    address = f"mqtt://127.0.0.1:{broker.plain_port}"
    (tmp_path / "other").mkdir()
    with (
        WorkerProcess(tmp_path, store, address) as first,
        WorkerProcess(tmp_path / "other", store, address),
    ):
        deadline = time.monotonic() + 30
        while "is another client called the same?" not in first.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_certificates_and_access_rules_of_the_shipped_broker(
    tmp_path: Path, broker: Broker, store: str
) -> None:
    """A worker with the certificate of ``ingest`` reads and acknowledges on the TLS listener."""
    identity = broker.services.issue("ingest")
    options = [
        *("--ca", str(broker.server_ca), "--certificate", str(identity.certificate)),
        *("--key", str(identity.key)),
    ]
    address = f"mqtts://localhost:{broker.service_port}"
    with (
        WorkerProcess(tmp_path, store, address, options=options) as worker,
        SendingDevice(broker.plain_port, DEVICE) as device,
    ):
        device.send(1, 5)
        assert device.wait_until_stored(5) == 0
        assert worker.stop() == 0


def test_why_a_broker_cannot_be_reached_is_told(broker: Broker, store: str) -> None:
    """A certificate that the worker does not trust is another matter than a broker that is away."""
    command = [sys.executable, "-m", "ota.cli", "ingest", "--store", store, "--name", "w1"]
    for address, said in (
        (f"mqtts://localhost:{broker.service_port}", "certificate verify failed"),
        (f"mqtt://127.0.0.1:{free_port()}", "Connection refused"),
    ):
        with subprocess.Popen(
            [*command, "--broker", address], stderr=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stderr is not None
            line = next(text for text in worker.stderr if "cannot be reached" in text)
            worker.terminate()
            worker.stderr.read()
        assert said in json.loads(line)["error"]
        assert worker.returncode == 0
