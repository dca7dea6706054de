"""What the store says of now: alarms that are raised, and devices that are up or down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet_cases import (
    BOOT,
    DEVICE,
    START_MS,
    alarm,
    alarm_item,
    batch_item,
    health,
    health_item,
    migrated,
)

from ota.store.commit import Writer
from ota.store.database import Store
from ota.store.items import NewHealth
from ota.store.read import active_alarms, alarms_of


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with migrated(store_url) as opened:
        yield opened


def raised(store: Store) -> list[str]:
    return [f"{one.alarm}:{one.reading}" for one in active_alarms(store)]


def test_an_alarm_is_stored_once_and_shares_the_numbers(store: Store) -> None:
    """Alarms have numbers among the samples' and are acknowledged with them."""
    writer = Writer(store)
    done = writer.commit([batch_item(1, 4), alarm_item(alarm(5)), alarm_item(alarm(5))])
    assert (done.alarms, done.known_alarms) == (1, 1)
    assert done.stored == {DEVICE: {BOOT: ((1, 5),)}}
    [found] = alarms_of(store, "acme", "orin-1")
    assert (found.alarm, found.value, found.seq) == ("temperature", 91.5, 5)
    assert raised(store) == ["temperature:temperature_celsius.cpu"]


def test_replay_newest_first_does_not_raise_what_was_cleared(store: Store) -> None:
    """The number decides, not the order of arrival."""
    writer = Writer(store)
    writer.commit([health_item(health(boot=BOOT))])
    writer.commit([alarm_item(alarm(9, "cleared"))])
    writer.commit([alarm_item(alarm(5, "raised"))])
    assert not raised(store)
    writer.commit([alarm_item(alarm(12, "raised"))])
    assert len(raised(store)) == 1


def test_a_birth_ends_alarms_that_it_does_not_list(store: Store) -> None:
    """A device that restarted decides anew: only what its birth lists is still raised."""
    writer = Writer(store)
    disk = {"alarm": "disk", "reading": "disk_used_ratio./"}
    writer.commit([health_item(health()), alarm_item(alarm(5)), alarm_item(alarm(6, **disk))])
    assert len(raised(store)) == 2
    later = START_MS + 100_000
    writer.commit(
        [health_item(health(connection=2, time_ms=later, alarms=("disk:disk_used_ratio./",)))]
    )
    assert raised(store) == ["disk:disk_used_ratio./"]


def test_an_alarm_that_comes_before_its_birth_stays(store: Store) -> None:
    """A worker may have the alarm of a new boot before another has the birth."""
    writer = Writer(store)
    writer.commit([health_item(health()), alarm_item(alarm(5))])
    later = START_MS + 1_000_000
    writer.commit([alarm_item(alarm(2, boot="later", time_ms=later + 500))])
    assert raised(store) == ["temperature:temperature_celsius.cpu"]
    writer.commit([health_item(health(boot="later", time_ms=later))])
    [now] = active_alarms(store)
    assert (now.boot, now.seq) == ("later", 2)


def test_an_alarm_of_before_the_birth_is_history(store: Store) -> None:
    """What a device raised before it restarted, and sends afterwards, is not raised now."""
    writer = Writer(store)
    writer.commit([health_item(health(time_ms=START_MS + 100_000))])
    writer.commit([alarm_item(alarm(5))])
    assert not raised(store)
    assert len(alarms_of(store, "acme", "orin-1")) == 1


def down(reason: object, connection: int = 1) -> NewHealth:
    return health_item(health("down", connection, details={"reason": reason}))
