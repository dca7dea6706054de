"""The ring: nothing leaves before the store has it, nothing is numbered twice, nothing grows."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from telemetry_fakes import FakeClock

from device.telemetry.in_flight import InFlight
from device.telemetry.ring import ALARM, SAMPLE, Limits, Ring, Row
from edgekit.contracts.seq_ranges import ranges_of
from edgekit.errors import RingError

KERNEL = "1f0a52c3d4e5b6a7"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ring(tmp_path: Path, clock: FakeClock) -> Iterator[Ring]:
    opened = Ring(tmp_path / "ring.db", KERNEL, clock)
    yield opened
    opened.close()


def numbers(rows: list[Row]) -> list[int]:
    return [row.seq for row in rows]


def test_rows_leave_only_when_the_store_has_them(ring: Ring, clock: FakeClock) -> None:
    """Taken and published rows stay; acknowledged ones go, for good."""
    assert ring.put([b"a", b"b", b"c"]) == [1, 2, 3]
    assert numbers(ring.take(10)) == [1, 2, 3]
    assert ring.take(10) == []
    ring.published(ring.boot, ((1, 3),))
    assert ring.values()["ring_rows"] == 3
    assert ring.acknowledge(ring.boot, ((2, 3), (9, 9))) == 2
    assert ring.acknowledge(ring.boot, ((2, 3),)) == 0
    assert ring.acknowledge("another-life", ((1, 9),)) == 0
    clock.pass_ms(120_000)
    assert [row.payload for row in ring.take(10)] == [b"a"]


def test_a_store_that_does_not_answer_is_sent_all_again(ring: Ring, clock: FakeClock) -> None:
    """The time to answer runs from the PUBACK; rows that were not sent can be given back."""
    ring.put([b"a", b"b"])
    ring.take(10)
    clock.pass_ms(100_000)
    ring.published(ring.boot, ((1, 1),))
    clock.pass_ms(20_000)
    assert numbers(ring.take(10)) == [2]
    clock.pass_ms(100_000)
    assert numbers(ring.take(10)) == [1]
    ring.release(ring.boot, ((1, 1),))
    assert numbers(ring.take(10)) == [1]
    ring.release_all()
    assert numbers(ring.take(10)) == [1, 2]


def test_replay_is_newest_first_and_alarms_go_first(ring: Ring) -> None:
    """What is newest is taken first, in ascending order inside what is taken."""
    ring.put([b"s"] * 5)
    ring.put([b"alarm"], ALARM)
    ring.put([b"s"] * 4)
    assert numbers(ring.take(1, ALARM)) == [6]
    assert [numbers(ring.take(4)) for _ in range(3)] == [[7, 8, 9, 10], [2, 3, 4, 5], [1]]


def test_numbers_go_on_after_a_restart_though_all_rows_are_gone(
    tmp_path: Path, clock: FakeClock
) -> None:
    """A number that was acknowledged is never given again in this life."""
    for last in (2, 4, 6):
        ring = Ring(tmp_path / "ring.db", KERNEL, clock)
        assert ring.put([b"a", b"b"])[-1] == last
        assert ring.acknowledge(ring.boot, ((1, last),)) == 2
        ring.close()


def test_another_boot_counts_anew_and_earlier_rows_stay(tmp_path: Path, clock: FakeClock) -> None:
    """Rows of an earlier boot are taken after this one's, under their own name."""
    first = Ring(tmp_path / "ring.db", KERNEL, clock)
    first.put([b"old"])
    first.close()
    second = Ring(tmp_path / "ring.db", "f" * 16, clock)
    assert second.put([b"new"]) == [1]
    taken = [second.take(10) for _ in range(2)]
    assert [[(r.boot, r.payload) for r in rows] for rows in taken] == [
        [(second.boot, b"new")],
        [(first.boot, b"old")],
    ]
    assert second.acknowledge(first.boot, ((1, 1),)) == 1
    second.close()


def test_samples_are_dropped_before_alarms_and_counted(tmp_path: Path, clock: FakeClock) -> None:
    """The file stays within its cap; alarms outlive samples; every row is held or counted."""
    path = tmp_path / "ring.db"
    ring = Ring(path, KERNEL, clock, Limits(file_bytes=400_000))
    put = 0
    for index in range(300):
        put += len(ring.put([b"x" * 700] * 10))
        if index % 10 == 0:
            put += len(ring.put([b"alarm"], ALARM))
    values = ring.values()
    assert values["ring_file_bytes"] <= 400_000
    assert path.stat().st_size < 600_000
    assert path.with_name("ring.db-wal").stat().st_size < 3_000_000
    assert values["ring_rows"] + values["ring_dropped_total.full"] == put
    assert len(ring.take(100, ALARM)) == 30
    newest = ring.take(100)
    assert newest[-1].seq == put
    ring.close()


def test_alarms_are_dropped_when_nothing_else_is_left(tmp_path: Path, clock: FakeClock) -> None:
    """Even alarms cannot fill the disk; the newest stay."""
    ring = Ring(tmp_path / "ring.db", KERNEL, clock, Limits(file_bytes=300_000))
    for _ in range(60):
        ring.put([b"x" * 700] * 10, ALARM)
    assert ring.values()["ring_file_bytes"] <= 300_000
    assert ring.take(1, ALARM)[0].seq == 600
    ring.close()


def test_what_is_too_old_is_dropped_once_the_time_is_known(
    tmp_path: Path, clock: FakeClock
) -> None:
    """An unsynced clock drops nothing, and rows that it dated are not dropped by age."""
    ring = Ring(tmp_path / "ring.db", KERNEL, clock, Limits(age_ms=60_000))
    ring.put([b"synced"])
    clock.synced = False
    ring.put([b"unsynced"])
    clock.pass_ms(70_000)
    ring.put([b"later"])
    assert ring.values()["ring_rows"] == 3
    clock.synced = True
    ring.put([b"now"])
    assert [row.payload for row in ring.take(9)] == [b"now"]
    assert ring.values()["ring_dropped_total.age"] == 1
    assert ring.values()["ring_rows"] == 3
    ring.close()


def test_samples_of_a_clock_that_was_wrong_are_marked_and_redated(
    tmp_path: Path, clock: FakeClock
) -> None:
    """A device that boots in 1970 dates what it saw as soon as it knows the time."""
    clock.wall_ms, clock.synced = 5_000, False
    ring = Ring(tmp_path / "ring.db", KERNEL, clock)
    ring.put([b"a"])
    clock.pass_ms(10_000)
    ring.put([b"b"])
    assert [(row.time_ms, row.clock) for row in ring.take(9)] == [
        (5_000, "unsynced"), (15_000, "unsynced")]  # fmt: skip
    ring.release_all()
    clock.pass_ms(10_000)
    clock.wall_ms, clock.synced = 1_784_970_508_000, True
    assert ring.redate() == 2
    assert [(row.time_ms - clock.wall_ms, row.clock) for row in ring.take(9)] == [
        (-20_000, "redated"), (-10_000, "redated")]  # fmt: skip
    assert ring.redate() == 0
    ring.close()


def test_one_agent_has_the_ring(tmp_path: Path, ring: Ring, clock: FakeClock) -> None:
    """A second one is refused by name, and the first one goes on."""
    with pytest.raises(RingError, match="another agent has the ring"):
        Ring(tmp_path / "ring.db", KERNEL, clock)
    assert ring.put([b"a"]) == [1]


def test_a_newer_releases_file_is_not_touched(tmp_path: Path, clock: FakeClock) -> None:
    """It is no broken file: it stays where it is."""
    path = tmp_path / "ring.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(RingError, match="is of version 9, this edgekit reads 1"):
        Ring(path, KERNEL, clock)
    assert [file.name for file in tmp_path.iterdir()] == ["ring.db"]


@pytest.mark.parametrize("damage", ["garbage", "header", "pages", "half"])
def test_a_broken_file_is_put_aside_and_reported(
    tmp_path: Path, clock: FakeClock, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent starts with a new ring whose numbers are another life's; the old file is kept."""
    path = tmp_path / "ring.db"
    ring = Ring(path, KERNEL, clock)
    ring.put([b"x" * 500] * 200)
    ring.close()
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data = bytearray(random.Random(1).randbytes(len(data)))
    elif damage == "header":
        data[:100] = bytes(100)
    elif damage == "pages":
        data[4096:40_960] = b"\xa5" * 36_864
    else:
        data = data[: len(data) // 2]
    path.write_bytes(data)
    again = Ring(path, KERNEL, clock)
    assert again.boot != ring.boot
    assert again.boot.startswith(KERNEL)
    assert again.put([b"a"]) == [1]
    [aside] = again.moved_aside
    assert aside.read_bytes() == data
    assert again.values()["ring_dropped_total.broken"] == 1
    assert "is broken" in caplog.text
    again.close()


def test_a_file_that_breaks_under_way_is_replaced(tmp_path: Path, clock: FakeClock) -> None:
    """The call that meets the damage fails, says where the old file is, and the next one works."""
    path = tmp_path / "ring.db"
    first = Ring(path, KERNEL, clock)
    first.put([b"x" * 500] * 2000)
    first.close()
    ring = Ring(path, KERNEL, clock)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 900_000)
    ring._db.execute("PRAGMA shrink_memory")  # what was read at the start is not read again
    with pytest.raises(RingError, match=r"broke: .*A new one is in use; the old is"):
        ring.acknowledge(ring.boot, ((1, 2000),))
    assert len(ring.moved_aside) == 1
    assert ring.put([b"a"]) == [1]
    assert ring.boot != first.boot
    ring.close()


def test_broken_files_do_not_pile_up(tmp_path: Path, clock: FakeClock) -> None:
    """The newest two are kept."""
    path = tmp_path / "ring.db"
    for index in range(4):
        path.write_bytes(b"not a database, %d" % index * 50)
        Ring(path, KERNEL, clock).close()
        path.unlink()
    assert len(list(tmp_path.glob("ring.db.broken-*"))) == 2


def test_a_full_disk_keeps_what_there_is(ring: Ring) -> None:
    """A put that does not fit is an error of ours, and the ring goes on as it was."""
    ring.put([b"a"])
    pages = ring._db.execute("PRAGMA page_count").fetchone()[0]
    ring._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RingError, match="fails: database or disk is full"):
        ring.put([b"x" * 100_000])
    ring._db.execute("PRAGMA max_page_count = 100000")
    assert ring.put([b"b"]) == [2]
    assert numbers(ring.take(9)) == [1, 2]


class Model(RuleBasedStateMachine):
    """The ring behaves as a dictionary does, through restarts, in any order of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.folder = Path(__import__("tempfile").mkdtemp(prefix="ring-"))
        self.ring = Ring(self.folder / "ring.db", KERNEL, self.clock)
        self.held: dict[int, bytes] = {}
        self.sent: set[int] = set()
        self.next = 1

    @rule(payloads=st.lists(st.binary(max_size=50), min_size=1, max_size=5), alarm=st.booleans())
    def put(self, payloads: list[bytes], alarm: bool) -> None:  # noqa: FBT001
        found = self.ring.put(payloads, ALARM if alarm else SAMPLE)
        assert found == list(range(self.next, self.next + len(payloads)))
        self.next += len(payloads)
        self.held.update(zip(found, payloads, strict=True))

    @rule(limit=st.integers(1, 8), priority=st.sampled_from((SAMPLE, ALARM)))
    def take(self, limit: int, priority: int) -> None:
        rows = self.ring.take(limit, priority)
        for row in rows:
            assert self.held[row.seq] == row.payload
            assert row.seq not in self.sent
        self.sent.update(numbers(rows))

    @rule(seq=st.sets(st.integers(1, 60), max_size=10))
    def acknowledge(self, seq: set[int]) -> None:
        gone = self.ring.acknowledge(self.ring.boot, ranges_of(seq))
        assert gone == len(seq & set(self.held))
        self.held = {n: p for n, p in self.held.items() if n not in seq}
        self.sent -= seq

    @rule()
    def wait(self) -> None:
        self.clock.pass_ms(120_000)
        self.sent.clear()

    @rule()
    def restart(self) -> None:
        self.ring.close()
        self.ring = Ring(self.folder / "ring.db", KERNEL, self.clock)
        self.sent.clear()

    @invariant()
    def counts(self) -> None:
        assert self.ring.values()["ring_rows"] == len(self.held)

    def teardown(self) -> None:
        self.ring.close()
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_a_row_that_cannot_be_sent_is_dropped_and_counted(tmp_path: Path) -> None:
    """Its number is not given again, also where it was the newest and the file is opened anew."""
    ring = Ring(tmp_path / "ring.db", KERNEL, FakeClock())
    ring.put([b"a", b"b"])
    (row,) = ring.take(1)
    ring.discard(row, "unsendable")
    ring.discard(row, "unsendable")
    assert ring.values()["ring_dropped_total.unsendable"] == 1
    ring.close()
    again = Ring(tmp_path / "ring.db", KERNEL, FakeClock())
    assert again.put([b"c"]) == [3]
    again.close()


def test_what_waits_is_told(tmp_path: Path) -> None:
    """Rows on their way do not wait, until their time is over."""
    clock = FakeClock()
    ring = Ring(tmp_path / "ring.db", KERNEL, clock)
    assert not ring.has_waiting()
    ring.put([b"a", b"b"])
    ring.take(1)
    assert ring.has_waiting()
    ring.take(1)
    assert not ring.has_waiting()
    clock.pass_ms(120_000)
    assert ring.has_waiting()
    ring.close()


def test_rows_that_were_dropped_on_their_way_are_forgotten() -> None:
    """A store that never answers costs no memory: what is late is waited for no longer."""
    waiting = InFlight(1000)
    for number in range(1000):
        waiting.add("boot", number, number)
    waiting.forget_late(1500)
    assert len(waiting) == 499
    assert not waiting.holds("boot", 500)
    assert waiting.holds("boot", 501)
    waiting.extend("boot", ((600, 600),), 1500, 5000)
    waiting.forget_late(3000)
    assert len(waiting) == 1


def test_an_acknowledgement_of_many_ranges_is_quick() -> None:
    """Ten thousand ranges against ten thousand rows: bisected, not multiplied."""
    waiting = InFlight(1000)
    for number in range(1, 10_001):
        waiting.add("boot", number, 0)
    began = time.perf_counter()
    waiting.remove("boot", tuple((2 * n + 1, 2 * n + 1) for n in range(10_000)))
    assert len(waiting) == 5000
    assert time.perf_counter() - began < 2


def test_rows_are_counted_along(tmp_path: Path) -> None:
    """The reading is that of the file after puts, drops, acknowledgements and a new start."""
    clock = FakeClock()
    ring = Ring(tmp_path / "ring.db", KERNEL, clock, Limits(file_bytes=100_000))
    for step in range(40):
        ring.put([b"x" * 500] * 10)
        if step % 3 == 0:
            ring.acknowledge(ring.boot, ((5 * step, 5 * step + 4), (10**6, 10**7)))
        if step % 7 == 0:
            ring.discard(ring.take(1)[0], "unsendable")
        counted = ring._db.execute("SELECT count(*) FROM row").fetchone()[0]
        assert ring.values()["ring_rows"] == counted
    assert ring.values()["ring_dropped_total.full"] > 0
    ring.close()
    again = Ring(tmp_path / "ring.db", KERNEL, clock)
    assert again.values()["ring_rows"] == counted
    again.close()
