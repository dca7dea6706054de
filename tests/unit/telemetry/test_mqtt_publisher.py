"""From the ring to the broker: order, bounds, what is repeated and what is not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from telemetry_fakes import FakeClock

from device.simulator.day import Day as Readings
from device.telemetry.alarms import Decision
from device.telemetry.mqtt.day_bytes import DayBytes
from device.telemetry.mqtt.events import Connected, Delivered
from device.telemetry.mqtt.policy import Day, Link, Plan, plan
from device.telemetry.mqtt.publisher import BATCH_ROWS, EXCHANGE_BYTES, Publisher
from device.telemetry.ring import ALARM, SAMPLE, Ring
from device.telemetry.rows import alarm_payload, sample_payload
from edgekit.batch_encoding import decompress
from edgekit.contracts.seq_ranges import ranges_of
from edgekit.contracts.telemetry import Alarm, Batch, Sample, StoreAcknowledgement
from edgekit.contracts.topics import Device
from edgekit.errors import MessageError, RingError

ORIN = Device("acme", "orin-1")
PLAN = Plan(10.0, 600.0, 1e6, live=True)
TIGHT = Plan(10.0, 600.0, 0.0, live=False)
RAISED = Decision("disk", "disk_used_ratio./", "raised", "major", 0.95, 0.9)


@dataclass
class Outlet:
    """Keeps what is published."""

    is_up: bool = True
    window: int = 16
    max_packet_bytes: int | None = None
    sent: list[tuple[str, bytes, Any]] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Any = None
    ) -> int | None:
        assert retain == topic.endswith("/status/health")
        self.sent.append((topic, payload, properties))
        return len(self.sent)

    def cut(self, why: str) -> None:
        self.cuts.append(why)

    def batches(self, first: int = 0) -> list[list[int]]:
        """Return the numbers of each batch."""
        found = []
        for topic, payload, properties in self.sent[first:]:
            if topic.endswith("/m/batch"):
                ((_, encoding),) = properties.UserProperty
                batch = Batch.from_bytes(decompress(payload, encoding))
                found.append([sample.seq for sample in batch.samples()])
        return found


class Bench:
    """A publisher with its ring, a clock and an outlet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock, self.outlet = FakeClock(), Outlet()
        self.ring = Ring(folder / "ring.db", "f" * 16, self.clock)
        self.publisher = Publisher(self.ring, self.outlet, ORIN, self.clock)
        self.publisher.connected(
            Connected(session_present=True, window=16, max_packet_bytes=None), 0
        )
        self.answered = 0

    @property
    def now_s(self) -> float:
        return self.clock.monotonic_ms() / 1000

    def put(self, count: int, priority: int = SAMPLE) -> None:
        payload = alarm_payload(RAISED) if priority else sample_payload({"uptime_s": 1.5})
        self.ring.put([payload] * count, priority)

    def step(self, plan: Plan = PLAN, passed_s: float = 0.0) -> None:
        self.clock.pass_ms(int(1000 * passed_s))
        self.publisher.step(self.now_s, plan)

    def puback(self, code: int = 0) -> None:
        """Answer all that was not."""
        for packet in range(self.answered + 1, len(self.outlet.sent) + 1):
            self.publisher.delivered(Delivered(packet, code, "so"), self.now_s)
        self.answered = len(self.outlet.sent)

    def store(self, *numbers: int) -> None:
        stored = {self.ring.boot: ranges_of(numbers)}
        self.publisher.stored(StoreAcknowledgement(stored=stored).to_bytes())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.ring.close()


def test_alarms_go_first_and_at_once(bench: Bench) -> None:
    """One message each, the newest first, on the topic of their name; batches keep their time."""
    bench.put(2)
    bench.put(2, ALARM)
    bench.step()
    topics = [topic for topic, _, _ in bench.outlet.sent]
    assert topics == [f"ek/{ORIN.path}/a/disk"] * 2 + [f"ek/{ORIN.path}/m/batch"]
    assert [Alarm.from_bytes(sent[1]).seq for sent in bench.outlet.sent[:2]] == [4, 3]
    bench.puback()
    bench.put(1)
    bench.put(1, ALARM)
    bench.step(passed_s=1)
    assert len(bench.outlet.sent) == 4
    bench.puback()
    bench.store(1, 2, 3, 4)
    bench.step(passed_s=600)
    assert bench.outlet.batches() == [[1, 2], [5]]


def test_without_bytes_alarms_are_sent_and_samples_are_kept(bench: Bench) -> None:
    """A plan without batches does not hold up alarms."""
    bench.put(3)
    bench.put(1, ALARM)
    bench.step(Plan(300.0, None, 0.0, live=False))
    assert [topic for topic, _, _ in bench.outlet.sent] == [f"ek/{ORIN.path}/a/disk"]
    assert bench.ring.values()["ring_rows"] == 4


def test_a_backlog_goes_newest_first_and_in_its_time(bench: Bench) -> None:
    """Full batches of it have pauses between them, and each waits for the PUBACK of the last."""
    bench.put(2 * BATCH_ROWS + 10)
    bench.step()
    bench.step(passed_s=20)
    assert len(bench.outlet.sent) == 1
    bench.puback()
    bench.step(passed_s=1)
    assert len(bench.outlet.sent) == 2
    bench.puback()
    bench.step(passed_s=9)
    assert len(bench.outlet.sent) == 2
    bench.step(passed_s=1)
    batches = bench.outlet.batches()
    assert [len(batch) for batch in batches] == [BATCH_ROWS, BATCH_ROWS, 10]
    assert batches[0][-1] == 2 * BATCH_ROWS + 10
    assert batches[2][0] == 1


def test_a_tight_budget_sends_new_samples_only(bench: Bench) -> None:
    """A backlog waits for better days, however long."""
    bench.put(500)
    for _ in range(5):
        bench.step(TIGHT)
        bench.puback()
        bench.step(TIGHT, passed_s=590)
        bench.put(60)
        bench.clock.pass_ms(10_000)
    sizes = [len(batch) for batch in bench.outlet.batches()]
    assert max(sizes) <= 62
    assert bench.outlet.batches()[0][-1] == 500


def test_another_life_is_not_starved(bench: Bench) -> None:
    """A few rows of an earlier boot follow the batch of this one, not a batch interval later."""
    bench.put(3)
    bench.ring.close()
    bench.ring = Ring(bench.folder / "ring.db", "e" * 16, bench.clock)
    bench.publisher = Publisher(bench.ring, bench.outlet, ORIN, bench.clock)
    bench.put(2)
    for _ in range(3):
        bench.step()
        bench.puback()
    assert bench.outlet.batches() == [[1, 2], [1, 2, 3]]


def test_what_no_puback_answered_is_sent_again(bench: Bench) -> None:
    """The connection is cut after 30 s, and its rows go again over the next."""
    bench.put(3)
    bench.put(1, ALARM)
    bench.step()
    bench.step(passed_s=29)
    assert not bench.outlet.cuts
    bench.step(passed_s=2)
    assert bench.outlet.cuts == ["no PUBACK in 30 s"]
    bench.publisher.ended()
    bench.publisher.connected(Connected(session_present=True, window=16, max_packet_bytes=None), 31)
    bench.step(passed_s=600)
    assert bench.outlet.batches() == [[1, 2, 3]] * 2
    assert len(bench.outlet.sent) == 4


def test_a_lost_session_sends_all_again(bench: Bench) -> None:
    """A broker that forgot the session may have forgotten what it had acknowledged."""
    bench.put(3)
    bench.step()
    bench.puback()
    bench.publisher.ended()
    for present in (True, False):
        connected = Connected(session_present=present, window=16, max_packet_bytes=None)
        bench.publisher.connected(connected, bench.now_s)
        bench.step(passed_s=1)
        assert len(bench.outlet.batches()) == (1 if present else 2)


def test_a_refused_publish_is_tried_again_later(bench: Bench) -> None:
    """A reason code from 0x80 on is counted, and the row waits for two minutes."""
    bench.put(1, ALARM)
    bench.step()
    bench.puback(0x97)
    assert bench.publisher.counts["refused"] == 1
    bench.step(passed_s=60)
    assert len(bench.outlet.sent) == 1
    bench.step(passed_s=61)
    assert len(bench.outlet.sent) == 2


def test_a_silent_store_is_not_run_over(bench: Bench) -> None:
    """An alarm that it never acknowledges is repeated ever more seldom, to once an hour."""
    bench.put(1, ALARM)
    for _ in range(8640):
        bench.step(passed_s=10)
        bench.puback()
    repeats = len(bench.outlet.sent)
    assert 20 <= repeats <= 40
    assert bench.publisher.is_store_silent(bench.now_s)
    bench.put(700)
    bench.step(passed_s=600)
    bench.puback()
    assert len(bench.outlet.batches()[-1]) <= 122  # of the time since the last batch
    bench.store(*range(100, 700))
    assert not bench.publisher.is_store_silent(bench.now_s)
    bench.step(passed_s=600)
    assert bench.outlet.batches()[-1] == list(range(2, 100))


def test_an_acknowledgement_frees_the_ring_and_doubles_nothing(bench: Bench) -> None:
    """Twice the same and numbers that are not there do no harm; a broken one is refused."""
    bench.put(5)
    bench.step()
    bench.puback()
    bench.store(1, 2, 3)
    bench.store(1, 2, 3, 4, 5, 99)
    assert bench.publisher.counts["stored"] == 5
    assert bench.ring.values()["ring_rows"] == 0
    with pytest.raises(MessageError):
        bench.publisher.stored(b'{"stored":1}')


def test_a_batch_fits_the_brokers_packets(bench: Bench) -> None:
    """What does not fit goes back and follows in its turn; nothing is lost."""
    bench.outlet.max_packet_bytes = 1400
    chance = random.Random(1)
    for _ in range(40):
        values = {f"power_mw.z{n}": chance.randrange(10**6) for n in range(20)}
        bench.ring.put([sample_payload(values)])
    for _ in range(40):
        bench.step(passed_s=10)
        bench.puback()
    assert all(len(payload) <= 1400 - 512 for _, payload, _ in bench.outlet.sent)
    batches = bench.outlet.batches()
    assert len(batches) > 3
    assert sorted(seq for batch in batches for seq in batch) == list(range(1, 41))


def test_an_unreadable_row_is_dropped_and_counted(bench: Bench) -> None:
    """It holds up neither the others nor itself for ever."""
    bench.put(2)
    bench.ring.put([b"broken"])
    bench.ring.put([b"broken"], ALARM)
    bench.put(1)
    bench.step()
    assert bench.outlet.batches() == [[1, 2, 5]]
    assert bench.ring.values()["ring_dropped_total.unsendable"] == 2
    assert bench.ring.values()["ring_rows"] == 3


def test_live_samples_go_by_themselves(bench: Bench) -> None:
    """The newest one, as a message that the broker drops after a minute; it is not sent twice."""
    bench.put(2)
    bench.publisher.send_live(bench.now_s)
    ((topic, payload, properties),) = bench.outlet.sent
    assert topic == f"ek/{ORIN.path}/m/sample"
    assert Sample.from_bytes(payload).seq == 2
    assert properties.MessageExpiryInterval == 60
    bench.step()
    assert bench.outlet.batches() == [[1]]


def test_more_frequent_batches_are_not_waited_for(bench: Bench) -> None:
    """A plan that comes in the middle of an hour counts from the last batch on."""
    bench.put(1)
    bench.step(Plan(10.0, 3600.0, 0.0, live=False))
    bench.puback()
    bench.put(1)
    bench.step(Plan(10.0, 60.0, 0.0, live=False), 59.0)
    assert len(bench.outlet.batches()) == 1
    bench.step(Plan(10.0, 60.0, 0.0, live=False), 1.0)
    assert bench.outlet.batches() == [[1], [2]]


def test_nothing_is_taken_without_a_connection(bench: Bench) -> None:
    """Rows stay as they are."""
    bench.outlet.is_up = False
    bench.put(1, ALARM)
    bench.step()
    bench.publisher.send_live(bench.now_s)
    assert not bench.outlet.sent
    assert len(bench.ring.take(9, ALARM)) == 1


def test_a_birth_counts_as_under_way(bench: Bench) -> None:
    """A broker that takes one publish at a time gets the birth, then an alarm, then a batch."""
    bench.outlet.window = 1
    bench.put(1)
    bench.put(1, ALARM)
    bench.publisher.announce(f"ek/{ORIN.path}/status/health", b"birth", bench.now_s)
    for count in (1, 2, 3):
        bench.step(passed_s=1)
        assert len(bench.outlet.sent) == count
        bench.puback()
    kinds = [topic.rsplit("/", 2)[1] for topic, _, _ in bench.outlet.sent]
    assert kinds == ["status", "a", "m"]


def test_a_store_owes_no_answer_to_a_birth(bench: Bench) -> None:
    """A device that has nothing to store does not take it for silent."""
    bench.publisher.announce(f"ek/{ORIN.path}/status/health", b"birth", bench.now_s)
    bench.puback()
    bench.clock.pass_ms(10**6)
    assert not bench.publisher.is_store_silent(bench.now_s)


def test_no_more_is_under_way_than_the_broker_takes(bench: Bench) -> None:
    """Its receive maximum bounds alarms, too; the rest follows."""
    bench.outlet.window = 4
    bench.put(10, ALARM)
    bench.step()
    assert len(bench.outlet.sent) == 4
    bench.puback()
    bench.step()
    assert len(bench.outlet.sent) == 8


@pytest.mark.parametrize("limit", [150_000, pytest.param(4_000_000, marks=pytest.mark.slow)])
def test_a_day_of_samples_keeps_to_its_bytes(bench: Bench, limit: int) -> None:
    """From sensors to messages, with a backlog of the day before: never more than the limit.

    A made-up day of 62 readings; a message costs its payload and what is counted beside it.
    """
    bench.clock.wall_ms -= bench.clock.wall_ms % 86_400_000
    budget = DayBytes(bench.folder / "day.json", limit, bench.clock)
    readings = list(Readings(3).samples(8640))
    bench.ring.put([sample_payload(values) for values in readings[:4000]])
    total = sampled = 0
    due_s = bench.now_s
    for tick in range(8639):
        day = Day(limit, budget.left, budget.left_s)
        found = plan(day, Link(), bench.publisher.cost, sample_s=10.0, batch_s=600.0)
        if bench.now_s >= due_s:
            bench.ring.put([sample_payload(readings[tick])])
            due_s, sampled = bench.now_s + found.sample_s, sampled + 1
        before = len(bench.outlet.sent)
        bench.step(found, passed_s=10)
        bench.puback()
        for numbers in bench.outlet.batches(before):
            bench.store(*numbers)
        total += sum(len(payload) + EXCHANGE_BYTES for _, payload, _ in bench.outlet.sent[before:])
        budget.take_total(total)
    assert budget.used <= limit
    if limit > 10**6:
        assert sampled == 8639
        assert bench.ring.values()["ring_rows"] <= 61
    else:
        assert 500 < sampled < 8639
        assert budget.used > 0.8 * limit


def test_what_a_failing_disk_keeps_rests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store has, and the ring cannot let go, is sent hourly, not every two minutes."""
    read_only = Mock(side_effect=RingError("attempt to write a readonly database"))
    monkeypatch.setattr(bench.ring, "acknowledge", read_only)
    bench.put(5)
    bench.put(1, ALARM)
    bench.step()
    bench.puback()
    with pytest.raises(RingError):
        bench.store(*range(1, 7))
    for _ in range(110):
        bench.step(passed_s=32)
    assert len(bench.outlet.sent) == 2
    bench.step(passed_s=700)
    assert bench.outlet.batches() == [[1, 2, 3, 4, 5]] * 2
