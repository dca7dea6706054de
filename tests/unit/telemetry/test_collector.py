"""From sensors to batches: what is read arrives, whatever fails beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetry_fakes import FakeClock

from device.remote.errors import OUTCOMES as REMOTE_OUTCOMES
from device.telemetry.alarm_rules import DEFAULTS
from device.telemetry.alarms import Alarms
from device.telemetry.batch import pack
from device.telemetry.collector import Collector
from device.telemetry.mqtt.notices import OUTCOMES
from device.telemetry.mqtt.reasons import KINDS
from device.telemetry.ring import ALARM, DROP_REASONS, Ring, Row
from device.telemetry.rows import alarm_of, sample_of, sample_payload
from device.telemetry.sensors.counters import Counters
from device.telemetry.sensors.proc import Proc
from edgekit.batch_encoding import ENCODINGS, compress, decompress
from edgekit.contracts.batch_dictionary import DICTIONARY
from edgekit.contracts.series import Values
from edgekit.contracts.telemetry import Batch
from edgekit.errors import MessageError, SensorError

DOCS = Path(__file__).parents[3] / "docs/telemetry.md"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ring(tmp_path: Path, clock: FakeClock) -> Iterator[Ring]:
    opened = Ring(tmp_path / "ring.db", "f" * 16, clock)
    yield opened
    opened.close()


class Broken:
    """A sensor that fails, or says what is no reading."""

    name = "broken"

    def __init__(self) -> None:
        self.count = 0

    def read(self, now_s: float) -> Values:
        del now_s
        self.count += 1
        if self.count % 2:
            raise SensorError("no answer")
        return {"gpu_mhz": float("nan")}


def test_samples_are_kept_every_ten_seconds(ring: Ring, clock: FakeClock) -> None:
    """Ticks come every five seconds, a little late; a failing sensor leaves its readings out."""
    load = {"requests_running": 3}
    collector = Collector(
        [Proc(), Broken(), Counters("engine", lambda: load)], Alarms({}), ring, clock
    )
    for _ in range(13):
        collector.tick()
        clock.pass_ms(5_003)
    samples = [sample_of(row) for row in ring.take(100)]
    assert len(samples) == 7
    assert [b.time_ms - a.time_ms for a, b in itertools.pairwise(samples)] == [10_006] * 6
    assert [s.values["sensor_errors_total.broken"] for s in samples] == [1, 3, 5, 7, 9, 11, 13]
    assert all(s.values["requests_running"] == 3 and "gpu_mhz" not in s.values for s in samples)
    assert all(s.values["memory_total_bytes"] for s in samples)


def test_an_alarm_is_in_the_ring_within_15_seconds(ring: Ring, clock: FakeClock) -> None:
    """It is a row of its own that is sent before any sample."""
    values: dict[str, int | float | None] = {"engine_memory_used_ratio": 0.5}
    collector = Collector([Counters("engine", lambda: values)], Alarms(DEFAULTS), ring, clock)
    collector.tick()
    passed_ms = clock.time_ms() + 1
    values["engine_memory_used_ratio"] = 0.95
    rows: list[Row] = []
    while not rows:
        clock.pass_ms(5_000)
        collector.tick()
        rows = ring.take(10, ALARM)
    alarm = alarm_of(rows[0])
    assert (alarm.alarm, alarm.state, alarm.value) == ("gpu_memory", "raised", 0.95)
    assert alarm.seq == rows[0].seq
    assert alarm.time_ms - passed_ms <= 15_000
    assert type(alarm).from_bytes(alarm.to_bytes()) == alarm


def test_probe_counters_become_a_bound(ring: Ring, clock: FakeClock) -> None:
    """The window of the probe's counters is a reading, and its alarm is decided on it."""
    counts: dict[str, int | float | None] = {"probe_sent_total": 0, "probe_lost_total": 0}
    collector = Collector([Counters("probe", lambda: counts)], Alarms(DEFAULTS), ring, clock)
    collector.tick()
    counts.update(probe_sent_total=2000, probe_lost_total=40)
    clock.pass_ms(2_000_000)
    values, _ = collector.tick()
    assert values["probe_loss_lower_bound_ratio"] == pytest.approx(0.0126, abs=1e-3)
    clock.pass_ms(5_000)
    _, decisions = collector.tick()
    assert [d.alarm for d in decisions] == ["packet_loss"]


def test_rows_are_dated_anew_when_the_clock_is_set(ring: Ring, clock: FakeClock) -> None:
    """The collector sees that NTP has come."""
    clock.synced, clock.wall_ms = False, 0
    collector = Collector([], Alarms({}), ring, clock)
    collector.tick()
    clock.pass_ms(10_000)
    clock.synced, clock.wall_ms = True, 1_784_970_508_000
    collector.tick()
    assert [(r.time_ms, r.clock) for r in ring.take(1)] == [(1_784_970_508_000, "synced")]
    assert [(r.time_ms, r.clock) for r in ring.take(9)] == [(1_784_970_498_000, "redated")]


ROWS = [
    Row("b-1", seq, 0, 1_784_970_508_000 + seq * 10_000, "synced",
        sample_payload({"gpu_load_percent": seq % 7, "gpu_mhz": 1300.5}))
    for seq in (1, 2, 3, 5)
]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 1, 20, 400])
def test_a_damaged_row_is_named(cut: int) -> None:
    """What a disk has changed is no sample."""
    row = dataclasses.replace(ROWS[0], payload=ROWS[0].payload[:cut])
    for damaged in (row, dataclasses.replace(row, payload=ROWS[0].payload[:-1] + b"x")):
        if damaged.payload != ROWS[0].payload:
            with pytest.raises(MessageError, match="a row of the ring"):
                sample_of(damaged)


def test_rows_of_a_release_before_are_read() -> None:
    """An update of the agent does not lose what its ring holds: rows name their dictionary."""
    packer = zlib.compressobj(6, zdict=DICTIONARY)
    old = packer.compress(b'{"gpu_mhz":1300.5,"ring_rows":7}') + packer.flush()
    assert sample_of(dataclasses.replace(ROWS[0], payload=old)).values["ring_rows"] == 7
    other = zlib.compressobj(6, zdict=b"another program's")
    foreign = other.compress(b'{"gpu_mhz":1}') + other.flush()
    with pytest.raises(MessageError, match="a row of the ring cannot be read"):
        sample_of(dataclasses.replace(ROWS[0], payload=foreign))


def test_counters_that_stand_at_nothing_take_no_room() -> None:
    """What is told as 0 from the start adds two bytes a row and counter at most."""
    zeros = {
        **{f"notices_total.{one}": 0 for one in OUTCOMES},
        **{f"remote_documents_total.{one}": 0 for one in REMOTE_OUTCOMES},
        **{f"ring_dropped_total.{one}": 0 for one in DROP_REASONS},
        **{f"mqtt_failures_total.{one}": 0 for one in KINDS},
    }
    load = {"gpu_load_percent": 7, "uptime_s": 5}
    more = len(sample_payload({**load, **zeros})) - len(sample_payload(load))
    assert more <= 2 * len(zeros)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_batches_are_read_back(encoding: str) -> None:
    """In every encoding the same samples."""
    packed = pack(ROWS, encoding)
    assert (packed.boot, packed.seq, packed.encoding) == ("b-1", ((1, 3), (5, 5)), encoding)
    batch = Batch.from_bytes(decompress(packed.payload, encoding))
    assert batch.samples() == [sample_of(row) for row in ROWS]


@pytest.mark.parametrize("encoding", ENCODINGS[:2])
def test_a_cut_or_swollen_frame_is_refused(encoding: str) -> None:
    """No part of a frame is taken for it, and a small frame cannot fill the memory."""
    payload = compress(b"0" * 1_000_000, encoding)
    assert len(decompress(payload, encoding)) == 1_000_000
    for damaged in (payload[:-1], payload + b"x", b"", b"junk" * 9):
        with pytest.raises(MessageError):
            decompress(damaged, encoding)
    with pytest.raises(MessageError, match="larger than 1000 bytes"):
        decompress(payload, encoding, limit_bytes=1000)


@given(st.binary(max_size=100), st.sampled_from(ENCODINGS) | st.text(max_size=5))
def test_any_payload_is_bytes_or_an_error_of_ours(payload: bytes, encoding: str) -> None:
    """Nonsense in any encoding raises nothing else."""
    try:
        data = decompress(payload, encoding)
    except MessageError:
        return
    assert encoding == "json" or data is not None


def test_the_dictionary_is_the_documented_one() -> None:
    """Both sides must have the same bytes for ever; another one is another encoding."""
    assert hashlib.sha256(DICTIONARY).hexdigest() in DOCS.read_text("utf-8")
