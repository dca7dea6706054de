"""What ingest takes: what the contract takes, no more, and nothing that it cannot read again."""

from __future__ import annotations

import json
import math
import random
import time

import pytest
from fleet_cases import (
    BOOT,
    DEVICE,
    START_MS,
    alarm,
    arrived,
    batch_of,
    batch_payload,
    sample,
)
from hypothesis import example, given
from hypothesis import strategies as st
from spoiled_messages import spoiled_message

from edgekit.batch_encoding import compress, decompress
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.telemetry import Batch
from edgekit.errors import MessageError
from ota.ingest.batches import _checked, read_batch
from ota.ingest.messages import Arrived, read_message
from ota.ingest.rejects import KEPT_A_MINUTE, RejectLimit
from ota.store.items import REASONS, NewAlarm, NewBatch, NewHealth, Reject


def fast_is_no_wider(data: bytes) -> bool:
    """Hold the fast check to the contract's reader; return whether it took the payload.

    What it takes, and what it refuses, the reader takes and refuses, too.
    """
    try:
        found = _checked(data)
    except MessageError:
        with pytest.raises(MessageError):
            Batch.from_bytes(data)
        return False
    if found is None:
        return False
    batch = Batch.from_bytes(data)
    assert found == (batch.boot, batch.clock, batch.seq, batch.times_ms)
    return True


def test_canonical_batches_go_the_fast_way() -> None:
    """What devices write is checked without the contract's reader."""
    assert fast_is_no_wider(batch_of(range(1, 61)).to_bytes())
    assert fast_is_no_wider(batch_of([4, 5, 9]).to_bytes())


RIGHT = (
    '{"boot":"b","clock":"synced","constants":{"a":1},"schema_version":1,"seq":[[1,1]],'
    '"times_ms":[1]}'
)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ('"boot":"b"', '"boot":"b","boot":"b"'),
        ('{"a":1}', '{"a":1,"a":2}'),
        ('{"a":1}', '{"a":1e999}'),
        ('{"a":1}', '{"a":NaN}'),
        ('{"a":1}', '{"a":9007199254740993}'),
        ('{"a":1}', '{"A b":1}'),
        ('"constants":{"a":1}', '"deltas":{"a":[1,5]}'),
        ('"constants":{"a":1}', '"deltas":{"a":[-10,5]}'),
        ('"constants":{"a":1}', '"deltas":{"a":[0,5,6]}'),
        ('"constants":{"a":1}', '"lists":{"a":[]}'),
        ('"constants":{"a":1}', f'"constants":{{"a":{"[" * 9000}'),
        ('"constants":{"a":1}', f'"x":{"[" * 9000}{"]" * 9000}'),
        ("[[1,1]]", "[[1,2]]"),
        ("[[1,1]]", "[[0,0]]"),
        ('"times_ms":[1]', '"times_ms":[-1]'),
        ('"times_ms":[1]', '"times_ms":[]'),
        ("synced", "sundial"),
        ('"schema_version":1', '"schema_version":2'),
        ('"boot":"b"', '"boot":"../b"'),
    ],
)
def test_what_the_contract_refuses_is_refused(part: str, instead: str) -> None:
    """Double keys, numbers that others would round, wrong lengths, other versions."""
    assert fast_is_no_wider(RIGHT.encode())
    spoiled = RIGHT.replace(part, instead)
    assert spoiled != RIGHT
    with pytest.raises(MessageError):
        read_batch(DEVICE, START_MS, spoiled.encode(), "json")


def test_sums_that_are_too_large_are_refused() -> None:
    """Differences that are small by themselves can add up to what no double holds."""
    big = 2**53 - 1
    data = {
        "boot": "b",
        "clock": "synced",
        "deltas": {"a": [0, big, big]},
        "schema_version": 1,
        "seq": [[1, 2]],
        "times_ms": [1, 1],
    }
    with pytest.raises(MessageError):
        read_batch(DEVICE, START_MS, canonical_bytes(data), "json")
    data["deltas"] = {"a": [0, big, -big]}
    taken = read_batch(DEVICE, START_MS, canonical_bytes(data), "json")
    assert Batch.from_bytes(decompress(taken.payload, taken.encoding)).columns == {"a": (big, 0)}


VALUES = st.one_of(
    st.none(), st.integers(-(2**54), 2**54), st.floats(), st.booleans(), st.text(max_size=3)
)
FORMS = st.dictionaries(
    st.sampled_from(["a", "b.c", "uptime_s", "A", ""]),
    st.one_of(VALUES, st.lists(VALUES, max_size=4)),
)


@given(
    rows=st.integers(0, 3),
    first=st.integers(-1, 3),
    constants=FORMS,
    deltas=FORMS,
    lists=FORMS,
    more=st.dictionaries(st.sampled_from(["x", "boot", "clock"]), VALUES, max_size=1),
)
@example(rows=1, first=1, constants={"a": 2.0}, deltas={}, lists={}, more={})
def test_the_fast_way_takes_nothing_more(
    rows: int, first: int, constants: object, deltas: object, lists: object, more: dict[str, object]
) -> None:
    """Whatever the fast check takes, the contract's reader takes, and reads the same."""
    data = {
        "boot": "b",
        "clock": "synced",
        "constants": constants,
        "deltas": deltas,
        "lists": lists,
        "schema_version": 1,
        "seq": [[first, first + rows - 1]],
        "times_ms": [5] * rows,
        **more,
    }
    fast_is_no_wider(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
    fast_is_no_wider(json.dumps(data).encode())


def test_ten_thousand_spoiled_messages_are_refused_or_right() -> None:
    """No bytes make ingest fail: each message is refused with a reason, or reads back as sent."""
    chance = random.Random(11)
    refused = 0
    for _ in range(10_000):
        kind, encoding, spoiled = spoiled_message(chance)
        read = read_message(arrived(kind, spoiled, encoding=encoding))
        if isinstance(read, Reject):
            assert read.reason in REASONS
            assert read.error
            assert read.payload == spoiled
            refused += 1
        elif isinstance(read, NewBatch):
            batch = Batch.from_bytes(decompress(read.payload, read.encoding))
            assert (batch.boot, batch.seq) == (read.boot, read.seq)
            assert all(math.isfinite(v) for c in batch.columns.values() for v in c if v is not None)
        else:
            assert isinstance(read, NewAlarm | NewHealth)
    assert refused > 8000


def test_large_batches_are_canonical() -> None:
    """What takes the contract's reader long is refused, unless it is as devices write it."""
    rows = 9000
    data = {
        "boot": "b",
        "clock": "synced",
        "lists": {f"a{n}": [1.5] * rows for n in range(20)},
        "schema_version": 1,
        "seq": [[1, rows]],
        "times_ms": [1] * rows,
    }
    canonical = canonical_bytes(data)
    assert read_batch(DEVICE, START_MS, canonical, "json").seq == ((1, rows),)
    start = time.process_time()
    with pytest.raises(MessageError, match="not canonical"):
        read_batch(DEVICE, START_MS, canonical + b" ", "json")
    assert time.process_time() - start < 0.2


def bomb(size: int) -> bytes:
    return compress(b" " * size, "zstd")


@pytest.mark.parametrize(
    ("kind", "payload", "encoding", "reason"),
    [
        ("m/batch", bomb(64 * 1024 * 1024), "zstd", "message"),
        ("m/batch", bomb(1000), "zstd", "message"),
        ("m/batch", b" " * (4 * 1024 * 1024 + 1), "json", "message"),
        ("m/batch", batch_payload([1]), "gzip", "encoding"),
        ("m/batch", batch_payload([1]), "zstd", "message"),
        ("m/sample", sample(1).to_bytes() + b" " * 65536, "json", "message"),
        ("a/disk", alarm(1).to_bytes(), "json", "message"),
        ("m/other", b"{}", "json", "topic"),
        ("ack/store", b"{}", "json", "topic"),
        ("status/health", b"[" * 5000, "json", "message"),
    ],
)
def test_what_claims_too_much_or_lies_is_refused(
    kind: str, payload: bytes, encoding: str, reason: str
) -> None:
    """Bombs, unknown encodings, an alarm that is not its topic's, topics that are not devices'."""
    read = read_message(arrived(kind, payload, encoding=encoding))
    assert isinstance(read, Reject)
    assert read.reason == reason


def test_a_frame_cannot_claim_a_large_window() -> None:
    """A header of a few bytes does not make the reader take 128 MiB."""
    frame = bytes.fromhex("28b52ffd") + bytes([0x00, 17 << 3, 0x01, 0x00, 0x00])
    with pytest.raises(MessageError, match="no zstd frame"):
        decompress(frame, "zstd")


def test_the_topic_says_whose_a_message_is() -> None:
    """A payload that names another tenant and device is stored as the topic's."""
    data = {**batch_of([1]).to_dict(), "tenant": "other", "device": "orin-9"}
    message = Arrived(
        "ek/acme/device/orin-1/m/batch", canonical_bytes(data), "json", START_MS, 1, 1, 1
    )
    read = read_message(message)
    assert isinstance(read, NewBatch)
    assert read.device == DEVICE
    assert read.boot == BOOT


def test_unknown_fields_of_a_newer_device_are_kept() -> None:
    """They are stored with the batch and come out of it again."""
    data = {**batch_of([1]).to_dict(), "newer": [1, 2]}
    read = read_batch(DEVICE, START_MS, canonical_bytes(data), "json")
    assert Batch.from_bytes(decompress(read.payload, read.encoding)).unknown == {"newer": [1, 2]}


def test_rejects_of_one_device_do_not_push_out_those_of_others() -> None:
    """Ten a minute are kept of each; the next minute counts anew."""
    limit = RejectLimit()

    def reject(device: str, when_ms: int) -> Reject:
        return Reject(f"ek/acme/device/{device}/m/batch", when_ms, "message", "", b"")

    assert sum(limit.keeps(reject("a", 5)) for _ in range(50)) == KEPT_A_MINUTE
    assert limit.keeps(reject("b", 5))
    assert limit.keeps(reject("a", 60_005))
