"""The store: every sample once, acknowledged as stored, read in the order of commits."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from fleet_cases import (
    BOOT,
    DEVICE,
    START_MS,
    alarm,
    alarm_item,
    batch_item,
    batch_of,
    migrated,
    sample,
    stored_samples,
)
from sqlalchemy import text

from edgekit.contracts import seq_ranges
from edgekit.contracts.telemetry import Batch
from edgekit.contracts.topics import Device
from ota.store import commit as commit_module
from ota.store.commit import Committed, Writer
from ota.store.database import Store
from ota.store.items import Reject
from ota.store.read import alarms_of, batches_after, devices, find_device, last_cursor
from ota.store.schema import open_store

OTHER = Device("acme", "orin-2")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with migrated(store_url) as opened:
        yield opened


def test_a_batch_is_stored_as_it_came(store: Store) -> None:
    """The payload is kept byte for byte, with what its topic and its contents say."""
    item = batch_item(1, 60)
    done = Writer(store).commit([item])
    [stored] = batches_after(store, 0, 10)
    assert stored.payload == item.payload
    assert (stored.tenant, stored.device) == ("acme", "orin-1")
    assert stored.batch() == batch_of(range(1, 61))
    assert (stored.first_ms, stored.last_ms) == (START_MS + 10_000, START_MS + 600_000)
    assert done.stored == {DEVICE: {BOOT: ((1, 60),)}}
    assert last_cursor(store) == stored.cursor


def test_what_is_known_is_dropped_and_acknowledged_again(store: Store) -> None:
    """A repeat adds nothing; the acknowledgement names all of the range that it fell into."""
    writer = Writer(store)
    writer.commit([batch_item(1, 30)])
    writer.commit([batch_item(31, 60)])
    again = writer.commit([batch_item(10, 20)])
    assert (again.samples, again.known_samples) == (0, 11)
    assert again.stored == {DEVICE: {BOOT: ((1, 60),)}}
    assert set(stored_samples(store).values()) == {1}


def test_of_a_partly_known_batch_the_rest_is_stored(store: Store) -> None:
    """Samples between and around known ones are cut out of the batch, with their own values."""
    writer = Writer(store)
    writer.commit([batch_item(5, 9), batch_item(20, 20)])
    done = writer.commit([batch_item(1, 30)])
    assert (done.samples, done.known_samples) == (24, 6)
    newest = batches_after(store, 0, 10)[-1]
    assert newest.seq == ((1, 4), (10, 19), (21, 30))
    found = stored_samples(store)
    assert sorted(seq for _, _, seq in found) == list(range(1, 31))
    assert set(found.values()) == {1}


def test_repeats_in_one_group_are_seen(store: Store) -> None:
    """A message that comes twice in one transaction is stored once."""
    done = Writer(store).commit([batch_item(1, 10), batch_item(1, 10), batch_item(5, 15)])
    assert (done.samples, done.known_samples) == (15, 16)
    assert set(stored_samples(store).values()) == {1}


def test_numbers_are_of_one_device_and_boot(store: Store) -> None:
    """The same numbers of another boot, or of another device's boot of that name, are others."""
    items = [batch_item(1, 5), batch_item(1, 5, OTHER), batch_item(1, 5, boot="later")]
    done = Writer(store).commit(items)
    assert done.samples == 15
    assert done.stored == {
        DEVICE: {BOOT: ((1, 5),), "later": ((1, 5),)},
        OTHER: {BOOT: ((1, 5),)},
    }


def test_random_overlaps_are_stored_once(store: Store) -> None:
    """Whatever ranges come, in groups of whatever size, each sample is there once."""
    chance, writer = random.Random(7), Writer(store)
    wanted = set[int]()
    for _ in range(25):
        items = []
        for _ in range(chance.randrange(1, 5)):
            first = chance.randrange(1, 300)
            last = first + chance.randrange(40)
            wanted |= set(range(first, last + 1))
            items.append(batch_item(first, last))
        writer.commit(items)
    found = stored_samples(store)
    assert {seq for _, _, seq in found} == wanted
    assert set(found.values()) == {1}


def test_two_writers_of_one_device_store_each_sample_once(store_url: str, store: Store) -> None:
    """Workers that have the same messages at the same time agree on who stores what."""
    del store
    results: list[Committed] = []
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        with closing(open_store(store_url)) as own:
            writer = Writer(own)
            firsts = list(range(1, 401, 10))
            chance.shuffle(firsts)
            try:
                for first in firsts:
                    device = chance.choice((DEVICE, OTHER))
                    both = [batch_item(first, first + 14, d) for d in (device, DEVICE, OTHER)]
                    results.append(writer.commit(both))
            except BaseException as error:  # noqa: BLE001 - the test's thread tells the test
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with closing(open_store(store_url)) as own:
        found = stored_samples(own)
    assert set(found.values()) == {1}
    assert len(found) == 2 * 405 == sum(done.samples for done in results)


def test_a_cursor_skips_no_batch_of_a_slow_commit(
    store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is written first and committed late is not overtaken by the next one."""
    written, go_on = threading.Event(), threading.Event()
    last_step = commit_module._to_acknowledge

    def late(*arguments: Any) -> Any:
        if not written.is_set():
            written.set()
            assert go_on.wait(20)
        return last_step(*arguments)

    monkeypatch.setattr(commit_module, "_to_acknowledge", late)

    def write(device: Device) -> None:
        with closing(open_store(store_url)) as own:
            Writer(own).commit([batch_item(1, 5, device)])

    slow = threading.Thread(target=write, args=(DEVICE,))
    fast = threading.Thread(target=write, args=(OTHER,))
    slow.start()
    assert written.wait(20)
    fast.start()
    fast.join(0.5)
    seen = batches_after(store, 0, 10)
    go_on.set()
    slow.join()
    fast.join()
    seen += batches_after(store, seen[-1].cursor if seen else 0, 10)
    assert [one.device for one in seen] == ["orin-1", "orin-2"]


def test_a_reader_that_follows_misses_nothing(store_url: str, store: Store) -> None:
    """Three writers and a reader at once: every batch is seen once, in the order of the cursor."""
    ended = threading.Event()
    seen: list[int] = []

    def follow() -> None:
        cursor = 0
        while True:
            last_round = ended.is_set()
            for stored in batches_after(store, cursor, 3):
                cursor = stored.cursor
                seen.append(cursor)
            if last_round and cursor == last_cursor(store):
                return

    def write(number: int) -> None:
        with closing(open_store(store_url)) as own:
            writer = Writer(own)
            for first in range(1, 200, 5):
                writer.commit([batch_item(first, first + 4, Device("acme", f"orin-{number}"))])

    reader = threading.Thread(target=follow)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    assert len(seen) == 3 * 40
    assert seen == sorted(set(seen))


def test_a_torn_boot_is_refused_and_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device cannot make the store hold ranges without end; what it sends is refused with why."""
    monkeypatch.setattr(commit_module, "MAX_RANGES", 3)
    writer = Writer(store)
    writer.commit([batch_item(seq, seq) for seq in (1, 3, 5)])
    done = writer.commit([batch_item(7, 7), alarm_item(alarm(9)), batch_item(2, 2)])
    assert [reject.reason for reject in done.refused] == ["ranges", "ranges"]
    assert done.stored == {DEVICE: {BOOT: ((1, 3),)}}
    assert done.samples == 1
    assert seq_ranges.count(done.stored[DEVICE][BOOT]) == 3


def test_devices_are_listed_with_last_seen(store: Store) -> None:
    """Any message but a birth makes no state; it does say when a device was last heard of."""
    writer = Writer(store)
    writer.commit([replace(batch_item(1, 2), received_ms=1000)])
    writer.commit([replace(batch_item(3, 4), received_ms=5000)])
    writer.commit([replace(batch_item(1, 2, OTHER), received_ms=3000)])
    # Of another worker, which waited for the store with it.
    writer.commit([replace(batch_item(5, 6), received_ms=4000)])
    found = [(one.device, one.first_seen_ms, one.last_seen_ms, one.state) for one in devices(store)]
    assert found == [("orin-1", 1000, 5000, None), ("orin-2", 3000, 3000, None)]
    assert devices(store, "nobody") == []
    assert find_device(store, "acme", "orin-3") is None
    assert find_device(store, "acme", "orin-2") == devices(store)[1]


def test_rejects_are_kept_cut_and_capped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest alone are kept, with the beginning of the payload, whatever bytes it is of."""
    monkeypatch.setattr(commit_module, "MAX_REJECTS", 5)
    writer = Writer(store)
    for number in range(12):
        topic = f"ek/\u0000{number}\ud800"
        writer.commit([], [Reject(topic, number, "topic", "no\nsuch\x00", b"\x00\xff" * 4000)])

    with store.reading() as connection:
        rows = connection.execute(
            text("SELECT received_ms, size_bytes, payload FROM rejects")
        ).all()
    assert sorted(row[0] for row in rows) == [7, 8, 9, 10, 11]
    assert {(row[1], bytes(row[2])) for row in rows} == {(8000, b"\x00\xff" * 512)}


def test_a_failed_transaction_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the middle is as if it had never been, and the same writer goes on."""
    writer = Writer(store)

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(commit_module, "lock_cursor", fail)
        with pytest.raises(RuntimeError):
            writer.commit([batch_item(1, 5), alarm_item(alarm(6))])
    assert not devices(store)
    assert not alarms_of(store, "acme", "orin-1")
    assert writer.commit([batch_item(1, 5)]).samples == 5
    assert sample(1) == Batch.samples(batches_after(store, 0, 1)[0].batch())[0]
