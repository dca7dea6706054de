"""What is sent when: the day's bytes are kept, alarms excepted, and spent where that helps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetry_fakes import FakeClock

from device.ledger import DAY_S
from device.telemetry.mqtt.day_bytes import AHEAD_BYTES, DayBytes, wire_bytes
from device.telemetry.mqtt.policy import (
    ALARM_SHARE,
    MAX_STRETCH_BATCH,
    MAX_STRETCH_SAMPLE,
    WEAK_STRETCH,
    Cost,
    Day,
    Link,
    Plan,
    plan,
)
from edgekit.errors import StorageError

COST = Cost(60.0, 700.0)
WHOLE = Day(4_000_000, 4_000_000, 86_400.0)


def planned(day: Day = WHOLE, link: Link | None = None, cost: Cost = COST) -> Plan:
    return plan(day, link or Link(), cost, sample_s=10.0, batch_s=600.0)


def test_with_bytes_enough_all_is_as_wanted() -> None:
    """A sample in 10 s, a batch in 10 minutes, and what is left over for old samples."""
    found = planned()
    assert (found.sample_s, found.batch_s, found.live) == (10.0, 600.0, True)
    need = 8640 * 60 + 144 * 700
    assert found.replay_bytes == pytest.approx(4_000_000 * (1 - ALARM_SHARE) - need)


@pytest.mark.parametrize(
    "link", [Link(rtt_ms=2000.0), Link(retransmitted=0.2), Link(rsrp_dbm=-120.0)]
)
def test_a_weak_link_has_fewer_exchanges_and_no_replay(link: Link) -> None:
    """Half as many batches, nothing old, no live mode; samples are taken as before."""
    found = planned(link=link)
    assert found == Plan(10.0, 600.0 * WEAK_STRETCH, 0.0, live=False)


def test_an_unknown_link_is_not_weak() -> None:
    """A device without a modem and a kernel without counters send as wanted."""
    assert planned(link=Link(None, None, None)) == planned()


def test_without_bytes_nothing_but_alarms_is_sent() -> None:
    """What is left of the alarms' share is theirs."""
    found = planned(Day(4_000_000, int(4_000_000 * ALARM_SHARE), 3600.0))
    assert found.batch_s is None
    assert not found.live
    assert found.sample_s == 10.0 * MAX_STRETCH_SAMPLE


@given(
    limit=st.integers(100_000, 10**8),
    share=st.floats(0, 1),
    left_s=st.floats(1, 86_400),
    sample=st.floats(20, 2000),
    exchange=st.floats(200, 5000),
)
def test_a_plan_fits_or_is_as_slow_as_can_be(
    limit: int, share: float, left_s: float, sample: float, exchange: float
) -> None:
    """Going on as planned uses no more than what is spendable, unless both bounds are reached."""
    day = Day(limit, int(limit * share), left_s)
    found = planned(day, cost=Cost(sample, exchange))
    assert 10.0 <= found.sample_s <= 10.0 * MAX_STRETCH_SAMPLE
    if found.batch_s is None:
        assert day.spendable < sample + exchange
        return
    assert 600.0 <= found.batch_s <= 600.0 * MAX_STRETCH_BATCH
    need = left_s * (sample / found.sample_s + exchange / found.batch_s)
    slowest = found.batch_s == 600.0 * MAX_STRETCH_BATCH
    assert slowest or need <= day.spendable * 1.000001 + 1
    assert found.replay_bytes <= max(day.spendable - need, 0) + 1


@given(st.integers(0, 4_000_000), st.integers(0, 4_000_000))
def test_fewer_bytes_never_make_it_faster(one: int, other: int) -> None:
    """Less that is left gives no shorter time between samples or batches."""
    less, more = sorted((one, other))
    slow = planned(Day(4_000_000, less, 40_000.0))
    fast = planned(Day(4_000_000, more, 40_000.0))
    assert slow.sample_s >= fast.sample_s
    assert (slow.batch_s or float("inf")) >= (fast.batch_s or float("inf"))


@pytest.mark.parametrize("limit", [100_000, 200_000, 400_000, 4_000_000])
@pytest.mark.parametrize("cost", [COST, Cost(200.0, 3000.0)])
def test_a_day_keeps_to_its_bytes(limit: int, cost: Cost) -> None:
    """A day planned minute by minute, with a backlog and dear samples, stays below the limit."""
    chance = random.Random(1)
    used, backlog = 0.0, 1_000_000.0
    now_s = sample_due_s = batch_due_s = 0.0
    samples = batches = 0
    while now_s < DAY_S:
        day = Day(limit, int(limit - used), DAY_S - now_s)
        weak = Link(rtt_ms=chance.choice([50.0, 50.0, 3000.0]))
        found = planned(day, weak, cost)
        if now_s >= sample_due_s:
            samples, sample_due_s = samples + 1, now_s + found.sample_s
        if found.batch_s is not None and now_s >= batch_due_s:
            used += samples * cost.sample_bytes + cost.exchange_bytes
            samples, batches, batch_due_s = 0, batches + 1, now_s + found.batch_s
            replay = min(found.replay_bytes, backlog, 13_000)
            used, backlog = used + replay, backlog - replay
        now_s += 10
    assert used <= limit
    assert batches >= 10
    assert used >= min(0.5 * limit, 8640 * cost.sample_bytes)


def test_headers_count() -> None:
    """What a segment costs is more than its payload, and its acknowledgement comes back."""
    assert wire_bytes(1000, 100, 2) == 1000 + 100 + 4 * 52


def test_bytes_outlive_a_restart_and_a_crash(tmp_path: Path) -> None:
    """After a stop the file says what was used; after a crash never less than that."""
    clock, path = FakeClock(), tmp_path / "day.json"
    day = DayBytes(path, 1_000_000, clock)
    day.take_total(1000)
    day.take_total(1500)
    crashed = DayBytes(path, 1_000_000, clock)
    assert 1500 <= crashed.used <= 1500 + AHEAD_BYTES
    day.close()
    stopped = DayBytes(path, 1_000_000, clock)
    assert (stopped.used, stopped.left) == (1500, 998_500)


def test_a_new_day_begins_at_zero_and_a_clock_that_jumps_back_begins_none(tmp_path: Path) -> None:
    """Midnight of UTC gives the next budget; a wrong clock gives no second one."""
    clock = FakeClock(time_ms=int((20_000 * DAY_S + DAY_S - 10) * 1000))
    day = DayBytes(tmp_path / "day.json", 1000, clock)
    day.count(900)
    assert day.left_s == pytest.approx(10)
    clock.wall_ms -= 5 * DAY_S * 1000
    assert day.used == 900
    clock.wall_ms += 5 * DAY_S * 1000
    clock.pass_ms(11_000)
    assert (day.used, day.left) == (0, 1000)
    day.count(5000)
    assert day.left == 0


def test_a_disk_that_is_full_is_told_and_bytes_are_counted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget holds even where its file cannot be written."""

    def full(*_: object) -> None:
        raise StorageError("no space")

    day = DayBytes(tmp_path / "day.json", 1000, FakeClock())
    monkeypatch.setattr("device.telemetry.mqtt.day_bytes.write_ledger", full)
    with pytest.raises(StorageError, match="no space"):
        day.count(700)
    assert day.left == 300


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b'{"day":1}'])
def test_a_broken_file_spends_the_day_and_silences_nobody(tmp_path: Path, content: bytes) -> None:
    """What a power cut broke neither gives a second budget nor ends the telemetry for good."""
    clock, path = FakeClock(), tmp_path / "day.json"
    path.write_bytes(content)
    day = DayBytes(path, 1000, clock)
    assert (day.used, day.left) == (1000, 0)
    assert DayBytes(path, 1000, clock).left == 0
    clock.pass_ms(DAY_S * 1000)
    assert day.left == 1000


def test_a_disk_that_is_full_at_the_start_keeps_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was used goes on to count where the file can be read and not written."""

    def full(*_: object) -> None:
        raise StorageError("no space")

    path = tmp_path / "day.json"
    DayBytes(path, 1000, FakeClock()).count(300)
    used = DayBytes(path, 1000, FakeClock()).used
    monkeypatch.setattr("device.telemetry.mqtt.day_bytes.write_ledger", full)
    assert DayBytes(path, 1000, FakeClock()).used == used >= 300
