"""The worker's own rules: groups, messages that the database refuses, stale acknowledgements."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet_cases import BOOT, DEVICE, arrived, batch_payload, stored_samples
from paho.mqtt.client import ConnectFlags, DisconnectFlags
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from sqlalchemy import text

from edgekit.contracts.seq_ranges import MAX_SEQ, Ranges, count, union
from edgekit.contracts.telemetry import StoreAcknowledgement
from ota.ingest import link as link_module
from ota.ingest import worker as worker_module
from ota.ingest.inbox import Inbox
from ota.ingest.link import Link
from ota.ingest.messages import Arrived, read_message
from ota.ingest.metrics import Metrics
from ota.ingest.settings import Settings
from ota.ingest.worker import Worker
from ota.store import commit as commit_module
from ota.store.commit import Committed
from ota.store.database import Store, connect
from ota.store.schema import migrate

SETTINGS = Settings(name="w1", broker="mqtt://localhost")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(connect(f"sqlite:///{tmp_path}/store.db")) as opened:
        migrate(opened)
        yield opened


def batch(first: int, last: int, boot: str = BOOT) -> Arrived:
    return arrived("m/batch", batch_payload(range(first, last + 1), boot))


def test_a_group_is_full_late_or_followed_by_silence() -> None:
    """It does not wait for more than it may take, and for others only while they come."""
    inbox = Inbox()
    for _ in range(5):
        inbox.put(batch(1, 1))
    start = time.monotonic()
    assert len(inbox.gather(3, 60)) == 3
    assert len(inbox.gather(3, 60)) == 2
    assert time.monotonic() - start < 10


def test_a_group_waits_for_its_first_message() -> None:
    """An empty inbox takes no processor; what comes while it waits is taken."""
    inbox = Inbox()
    threading.Timer(0.2, inbox.put, [batch(1, 1)]).start()
    assert len(inbox.gather(3, 0)) == 1


def test_a_closed_inbox_ends_the_wait() -> None:
    """A worker that is stopped takes no group more: the broker still has all of it."""
    inbox = Inbox()
    threading.Timer(0.2, inbox.close).start()
    assert inbox.gather(3, 60) == []
    inbox.put(batch(1, 1))
    assert inbox.gather(3, 60) == []


def test_one_message_that_the_database_refuses_stops_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is stored message by message; the refused one is a reject."""
    with store.writing() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER no BEFORE INSERT ON batches WHEN new.boot = 'poison'"
                " BEGIN SELECT RAISE(ABORT, 'never'); END"
            )
        )
    metrics = Metrics()
    worker = Worker(SETTINGS, store, metrics)
    acknowledged: list[Arrived] = []
    monkeypatch.setattr(Link, "acknowledge", lambda _, group: acknowledged.extend(group))
    group = [batch(1, 3), batch(1, 3, "poison"), batch(4, 6)]
    worker._take(group)
    assert acknowledged == group
    assert {boot for _, boot, _ in stored_samples(store)} == {BOOT}
    assert len(stored_samples(store)) == 6
    with store.reading() as connection:
        query = text("SELECT topic, reason, error FROM rejects")
        [(topic, reason, error)] = connection.execute(query).all()
    assert (topic, reason) == (f"ek/{DEVICE.path}/m/batch", "store")
    assert "never" in error
    assert metrics.registry.get_sample_value("edgekit_ingest_rejects_total", {"reason": "store"})


def test_of_what_the_store_refuses_a_part_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose numbers are torn pushes nobody's rejects out of the table; all are counted."""
    monkeypatch.setattr(commit_module, "MAX_RANGES", 1)
    metrics = Metrics()
    Worker(SETTINGS, store, metrics)._take([batch(seq, seq) for seq in range(1, 60, 2)])
    with store.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM rejects")).scalar_one() == 10
    counted = metrics.registry.get_sample_value(
        "edgekit_ingest_rejects_total", {"reason": "ranges"}
    )
    assert counted == 29


def test_a_fault_in_reading_is_one_messages_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that makes edgekit fail is rejected with the fault; the next one is stored."""

    def faulty(message: Arrived) -> Any:
        if message.topic.endswith("sample"):
            raise ZeroDivisionError
        return read_message(message)

    monkeypatch.setattr(worker_module, "read_message", faulty)
    worker = Worker(SETTINGS, store, Metrics())
    worker._take([arrived("m/sample", b"{}"), batch(1, 3)])
    assert len(stored_samples(store)) == 3
    with store.reading() as connection:
        [(reason, error)] = connection.execute(text("SELECT reason, error FROM rejects")).all()
    assert (reason, error) == ("fault", "internal error, ZeroDivisionError: ")


def test_a_stopped_worker_leaves_its_group_to_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not committed is not acknowledged, and SIGTERM does not wait for the database."""
    monkeypatch.setattr(Link, "acknowledge", lambda *_: pytest.fail("acknowledged"))
    with closing(connect(f"sqlite:///{tmp_path}/no/folder/store.db")) as away:
        worker = Worker(SETTINGS, away, Metrics())
        threading.Timer(0.3, worker.stop).start()
        start = time.monotonic()
        worker._take([batch(1, 3)])
        assert time.monotonic() - start < 10


def test_acknowledgements_are_of_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the next connection the same number may be another message's."""
    link = Link(SETTINGS, Inbox(), Metrics(), lambda: None)
    acknowledged: list[int] = []
    monkeypatch.setattr(link._client, "ack", lambda mid, _: acknowledged.append(mid))
    yes = ReasonCode(PacketTypes.CONNACK, "Success")
    lost = ReasonCode(PacketTypes.DISCONNECT, "Unspecified error")
    first, second = replace(batch(1, 1), mid=1), replace(batch(1, 1), mid=2, connection=2)
    link._on_connect(link._client, None, ConnectFlags(False), yes, None)
    link.acknowledge([first, replace(first, mid=9, qos=0)])
    assert acknowledged == [1]
    link._on_disconnect(link._client, None, DisconnectFlags(True), lost, None)
    link.acknowledge([first])
    link._on_connect(link._client, None, ConnectFlags(True), yes, None)
    link.acknowledge([first, second])
    assert acknowledged == [1, 2]


def test_refused_acknowledgements_are_told_once_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody would know otherwise why devices send everything again."""
    logged: list[str] = []
    monkeypatch.setattr(link_module, "log", lambda _, event, **__: logged.append(event))
    link = Link(SETTINGS, Inbox(), Metrics(), lambda: None)
    yes = ReasonCode(PacketTypes.CONNACK, "Success")
    no = ReasonCode(PacketTypes.PUBACK, "Not authorized")
    for _ in range(2):
        link._on_connect(link._client, None, ConnectFlags(True), yes, None)
        link._on_publish(link._client, None, 1, no, None)
        link._on_publish(link._client, None, 2, no, None)
    assert sum("refuses acknowledgements" in event for event in logged) == 2


@pytest.mark.parametrize("first", [10**9, MAX_SEQ - 20_000])
def test_large_acknowledgements_are_split(first: int) -> None:
    """A device reads no message over 64 KiB; many ranges, of whatever size, come in several."""
    ranges: Ranges = tuple((seq, seq) for seq in range(first, first + 20_000, 2))
    done = Committed(stored={DEVICE: {BOOT: ranges, "other": ((1, 2),)}})
    messages = list(worker_module._acknowledgements(done))
    assert {topic for topic, _ in messages} == {f"ek/{DEVICE.path}/ack/store"}
    assert max(len(payload) for _, payload in messages) < StoreAcknowledgement.MAX_BYTES
    read = [StoreAcknowledgement.from_bytes(payload).stored for _, payload in messages]
    assert union(*(one.get(BOOT, ()) for one in read)) == ranges
    assert sum(count(one.get("other", ())) for one in read) == 2
