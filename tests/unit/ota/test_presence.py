"""Presence in the store: births, wills and goodbyes, in whatever order they come."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing

import pytest
from fleet_cases import DEVICE, START_MS, alarm, health

from edgekit.contracts.telemetry import Health
from ota.store.commit import Writer
from ota.store.database import Store, connect
from ota.store.items import NewAlarm, NewHealth
from ota.store.read import active_alarms, devices
from ota.store.schema import migrate, open_store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(connect(store_url)) as plain:
        migrate(plain)
    with closing(open_store(store_url)) as opened:
        yield opened


def health_item(message: Health, received_ms: int = START_MS) -> NewHealth:
    return NewHealth(device=DEVICE, received_ms=received_ms, health=message)


def test_a_will_takes_a_device_down(store: Store) -> None:
    """A will of the present connection does; its alarms and details stay."""
    writer = Writer(store)
    writer.commit(
        [health_item(health()), NewAlarm(device=DEVICE, received_ms=START_MS, alarm=alarm(5))]
    )
    writer.commit([health_item(health("down"), START_MS + 77)])
    [device] = devices(store)
    assert (device.state, device.state_ms, device.connection) == ("down", START_MS + 77, 1)
    assert device.encodings == ("zstd-ek1", "zstd", "json")
    assert device.last_seen_ms == START_MS
    assert len(active_alarms(store)) == 1


def test_a_will_of_an_earlier_connection_is_stale(store: Store) -> None:
    """A broker may find out late that a connection is gone; the device is on the next by then."""
    writer = Writer(store)
    writer.commit([health_item(health()), health_item(health(connection=2))])
    writer.commit([health_item(health("down", connection=1))])
    [device] = devices(store)
    assert (device.state, device.connection) == ("up", 2)


def test_a_will_that_comes_before_its_birth_holds(store: Store) -> None:
    """Of one connection the will is the last word, in whatever order two workers have them."""
    writer = Writer(store)
    writer.commit([health_item(health("down", connection=3))])
    writer.commit([health_item(health("up", connection=3))])
    [device] = devices(store)
    assert (device.state, device.details["version"]) == ("down", "1.0")


def down(reason: object, connection: int = 1) -> NewHealth:
    return health_item(health("down", connection, details={"reason": reason}))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_goodbye_counts_before_the_will_of_its_connection(
    store: Store, order: tuple[int, ...]
) -> None:
    """In whatever order birth, goodbye and will come, a device that was stopped is not lost."""
    writer = Writer(store)
    messages = [health_item(health()), down("stopped"), down("lost")]
    for index in order:
        writer.commit([messages[index]])
    [device] = devices(store)
    assert (device.state, device.down_reason) == ("down", "stopped")


def test_a_device_that_is_back_is_down_for_no_reason(store: Store) -> None:
    """The next connection ends the reason, and so does another boot; a late goodbye is stale."""
    writer = Writer(store)
    writer.commit([health_item(health()), down("stopped")])
    writer.commit([health_item(health(connection=2)), down("stopped", 1)])
    [device] = devices(store)
    assert (device.state, device.down_reason) == ("up", None)
    writer.commit([down("lost", 2)])
    assert [one.down_reason for one in devices(store)] == ["lost"]
    writer.commit([health_item(health(boot="later", time_ms=START_MS + 5))])
    assert [(one.state, one.down_reason) for one in devices(store)] == [("up", None)]


@pytest.mark.parametrize("reason", [None, 7, "", "a\0b", "two words", "x" * 65])
def test_a_reason_that_is_no_word_is_none(store: Store, reason: object) -> None:
    """Whatever a device writes there, it is down, and the store takes it."""
    Writer(store).commit([health_item(health()), down(reason)])
    [device] = devices(store)
    assert (device.state, device.down_reason) == ("down", None)


def test_births_of_boots_that_are_over_are_stale(store: Store) -> None:
    """A message of an earlier boot that a killed worker had comes again when the boot is over."""
    writer = Writer(store)
    writer.commit([health_item(health(connection=8))])
    writer.commit([health_item(health(boot="later", time_ms=START_MS + 5))])
    writer.commit([health_item(health(connection=9)), health_item(health("down", connection=8))])
    [device] = devices(store)
    assert (device.boot, device.connection, device.state) == ("later", 1, "up")
