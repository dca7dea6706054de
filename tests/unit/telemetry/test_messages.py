"""Messages: golden bytes, nothing lost, older agents understood, nonsense refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_cases import BOOT, MESSAGES, sample

from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.columns import decode_columns, decode_times, encode_columns, encode_times
from edgekit.contracts.message import READABLE_VERSIONS, SCHEMA_VERSION, Message
from edgekit.contracts.series import NAME, SERIES, is_counter, split_name
from edgekit.contracts.telemetry import Batch, Sample, StoreAcknowledgement
from edgekit.errors import MessageError

GOLDEN = Path(__file__).parents[2] / "data" / "contracts"
KINDS = sorted(MESSAGES)
NUMBERS = (
    st.none()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-10_000, 10_000).map(lambda n: n / 1000)
)


def golden(version: int, kind: str) -> bytes:
    return (GOLDEN / f"v{version}" / f"{kind}.json").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_on_the_wire_are_the_golden_ones(kind: str) -> None:
    """What this release writes is fixed to the byte; changing it needs a new schema_version."""
    assert MESSAGES[kind].to_bytes() + b"\n" == golden(SCHEMA_VERSION, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_older_agents_are_read(version: int, kind: str) -> None:
    """Every message of every readable version is read, as the same kind."""
    message = type(MESSAGES[kind]).from_bytes(golden(version, kind))
    assert type(message).from_bytes(message.to_bytes()) == message


@pytest.mark.parametrize("kind", KINDS)
def test_golden_messages_read_back_equal(kind: str) -> None:
    """Reading gives what was written."""
    assert type(MESSAGES[kind]).from_bytes(golden(SCHEMA_VERSION, kind)) == MESSAGES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_survive(kind: str) -> None:
    """A newer sender's fields are written back, at every depth that is not ours."""
    data = {**json.loads(golden(SCHEMA_VERSION, kind)), "added": {"later": [1, None]}, "z": 1}
    message = type(MESSAGES[kind]).from_bytes(canonical_bytes(data))
    assert json.loads(message.to_bytes()) == data
    assert message != MESSAGES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_is_missing_or_of_another_kind_is_named(kind: str) -> None:
    """Whatever every sender writes is checked before it is used."""
    message = MESSAGES[kind]
    data = json.loads(golden(SCHEMA_VERSION, kind))
    assert set(message.FIELDS) | {"schema_version"} | set(message.OPTIONAL) >= set(data)
    for name in message.FIELDS:
        without = {key: value for key, value in data.items() if key != name}
        for broken in (without, {**data, name: None}, {**data, name: -1.5}):
            if name in {"value", "threshold"} and broken.get(name) is not None:
                continue  # any number is right
            with pytest.raises(MessageError, match=message.NAME):
                type(message).from_dict(broken)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", True, None])
def test_other_versions_are_refused(version: Any) -> None:
    """A version that this release does not read is named, not guessed at."""
    data = {**json.loads(golden(SCHEMA_VERSION, "alarm")), "schema_version": version}
    with pytest.raises(MessageError, match="alarm has schema_version"):
        type(MESSAGES["alarm"]).from_dict(data)


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error_of_ours(kind: str, payload: bytes) -> None:
    """Nonsense never raises anything else."""
    with pytest.raises(MessageError):
        type(MESSAGES[kind]).from_bytes(payload)


@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_message_is_read_or_is_an_error_of_ours(kind: str, data: st.DataObject) -> None:
    """A field replaced by anything never raises anything else, nor makes what cannot be written."""
    fields = json.loads(golden(SCHEMA_VERSION, kind))
    json_value = st.recursive(
        NUMBERS | st.booleans() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    )
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(json_value)
    try:
        message: Message = type(MESSAGES[kind]).from_dict(fields)
    except MessageError:
        return
    assert type(message).from_bytes(message.to_bytes()) == message


@given(st.integers(1, 20), st.data())
def test_columns_read_back(rows: int, data: st.DataObject) -> None:
    """Every number comes back equal, missing ones as missing, whatever form a column takes."""
    names = data.draw(st.lists(st.sampled_from(sorted(SERIES)), unique=True, max_size=4))
    column = st.lists(NUMBERS, min_size=rows, max_size=rows).map(tuple)
    columns = {name: data.draw(column) for name in names}
    encoded = json.loads(json.dumps(encode_columns(columns)))
    assert decode_columns(encoded, rows, "x") == columns


@given(st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=20))
def test_times_read_back(times: list[int]) -> None:
    """Times may repeat and go back."""
    assert decode_times(encode_times(times), "x") == tuple(times)


def test_every_form_is_used() -> None:
    """What does not change is written once, what changes little as differences."""
    encoded = encode_columns(
        {
            "a": [5.25] * 4,
            "b": [52.968, None, 53.0, 52.937],
            "c": [1, 900, 3, 7],
            "d": [1e-12, 1, 2, 3],
        }
    )
    assert encoded == {
        "constants": {"a": 5.25},
        "deltas": {"b": [-3, 52968, None, 32, -63]},
        "lists": {"c": [1, 900, 3, 7], "d": [1e-12, 1, 2, 3]},
    }


def test_batches_are_samples_with_gaps() -> None:
    """Samples come back with their numbers and times; what one lacks is missing."""
    batch = MESSAGES["batch"]
    assert isinstance(batch, Batch)
    found = batch.samples()
    assert [s.seq for s in found] == [17, 18, 20]
    assert [s.time_ms - found[0].time_ms for s in found] == [0, 10_000, 20_001]
    assert [s.values["temperature_celsius.cv0"] for s in found] == [None] * 3
    assert [s.values["gpu_load_percent"] for s in found] == [12, 97.5, None]
    assert Batch.of_samples(found) == batch


def test_a_batch_without_readings_is_one() -> None:
    """A device whose sensors all fail still says that it lives."""
    batch = Batch.of_samples([sample(1, 5, {}), sample(2, 6, {})])
    again = Batch.from_bytes(batch.to_bytes())
    assert [s.values for s in again.samples()] == [{}, {}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq": [[17, 18]]}, "2 numbers for 3 times"),
        ({"times_ms": [5, -6, 1]}, "not an integer from 0"),
        ({"times_ms": []}, "not a list of 1 to 10000 times"),
        ({"clock": "sundial"}, "clock is 'sundial', not one of synced"),
        ({"boot": "a/b"}, "boot 'a/b' is not"),
        ({"lists": {"gpu_load_percent": [1, 2]}}, "lists of 'gpu_load_percent' are not 3 readings"),
        ({"lists": {"memory_total_bytes": [1, 2, 3]}}, "lists of 'memory_total_bytes' are not"),
        ({"deltas": {"x": [-10, 1, 1, 1]}}, "deltas of 'x'"),
        ({"deltas": {"x": [0, 2**53, 1, 1]}}, "deltas of 'x'"),
        ({"constants": {"x": True}}, "constants of 'x'"),
        ({"constants": {"X": 1}}, "'X' is not a reading's name"),
        ({"constants": {f"x{i}": 1 for i in range(501)}}, "too many columns"),
        ({"constants": []}, "constants is not an object"),
    ],
)
def test_broken_batches_are_refused(change: dict[str, Any], message: str) -> None:
    """Each fault is named."""
    data = {**json.loads(golden(SCHEMA_VERSION, "batch")), **change}
    with pytest.raises(MessageError, match=message):
        Batch.from_dict(data)


def test_a_small_message_cannot_claim_many_cells() -> None:
    """Rows times columns are bounded, however few bytes state them."""
    data = {"schema_version": 1, "boot": BOOT, "clock": "synced", "seq": [[1, 10_000]],
            "times_ms": [0] * 10_000, "constants": {f"x{i}": 1 for i in range(51)}}  # fmt: skip
    with pytest.raises(MessageError, match="too many columns for its 10000 rows"):
        Batch.from_dict(data)


def test_readings_that_no_reader_could_use_are_refused() -> None:
    """NaN, texts and flags are no readings; null is one that is missing."""
    for value in (float("nan"), float("inf"), "12", True, 2**53 + 1):
        with pytest.raises(MessageError):
            Sample.from_dict({**sample(1, 1, {}).to_dict(), "values": {"gpu_mhz": value}})
    assert Sample.from_bytes(sample(1, 1, {"gpu_mhz": None}).to_bytes()).values == {"gpu_mhz": None}


def test_a_value_that_is_not_json_is_not_written() -> None:
    """The writer's own faults are named, too."""
    with pytest.raises(MessageError, match="sample: nan is not a JSON number"):
        sample(1, 1, {"gpu_mhz": float("nan")}).to_bytes()


def test_units_are_in_the_names() -> None:
    """Every series says its unit, counts something, or is a number of a documented kind."""
    units = (
        "_bytes", "_ratio", "_percent", "_mhz", "_celsius", "_mw", "_ms", "_s", "_dbm", "_db",
        "_total",
    )  # fmt: skip
    counts = {"requests_running", "requests_waiting", "ring_rows", "throttling_alerts",
              "power_mode_id", "gpu_clock_pinned", "cpu_clock_pinned"}  # fmt: skip
    for name, series in SERIES.items():
        assert NAME.fullmatch(name)
        assert name.endswith(units) or name in counts
        assert series.help.endswith(".")
    assert is_counter("disk_read_bytes_total.nvme0n1")
    assert split_name("disk_used_ratio./var/lib") == ("disk_used_ratio", "/var/lib")


def test_acknowledgements_are_sets() -> None:
    """Ranges that touch are one, whoever wrote them."""
    data = {"schema_version": 1, "stored": {BOOT: [[1, 2], [3, 4]]}}
    assert StoreAcknowledgement.from_dict(data).stored == {BOOT: ((1, 4),)}
