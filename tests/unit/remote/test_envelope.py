"""Envelopes and signed documents: DSSE's own vector, golden bytes, nonsense refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remote_cases import KEY, SECOND, command, configuration, signed

from edgekit.contracts.command_arguments import check_arguments
from edgekit.contracts.envelope import MAX_SIGNATURES, Envelope, Signature, pae
from edgekit.contracts.remote_settings import check_settings
from edgekit.contracts.signed import Audience, Command, Configuration, Document
from edgekit.errors import MessageError

GOLDEN = Path(__file__).parents[2] / "data" / "contracts" / "v1"
SETTINGS: dict[str, Any] = {
    "alarms": {"temperature": {"raise_above": 95, "clear_below": 88.5}, "storage_life": False},
    "log": {"level": "info", "prompts": False},
    "routing": {"cloud": False, "local_clients": ["camera"], "reasons": ["context"]},
    "telemetry": {
        "batch_s": 600,
        "daily_bytes": 10_000_000,
        "probe_daily_bytes": 0,
        "sample_s": 10,
    },
}
CASES: dict[str, Document] = {
    "configuration": configuration(SETTINGS, 7),
    "configuration_of_a_cohort": configuration({}, 8, audience=Audience("cohort", "eu")),
    "command_live": command("live", {"minutes": 10}),
    "command_logs": command("logs", {"url": "https://fleet.example/v1/diagnostics/c-2"}, 2),
}


def test_the_encoding_is_dsses() -> None:
    """The bytes that are signed are those of DSSE's protocol.md."""
    wanted = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == wanted
    assert pae("ü", b"") == b"DSSEv1 2 \xc3\xbc 0 "


def test_dsses_example_is_read() -> None:
    """The envelope of protocol.md, which has no key's id, is read as it is written there."""
    text = (
        '{"payload": "aGVsbG8gd29ybGQ=", "payloadType": "http://example.com/HelloWorld",'
        ' "signatures": [{"sig": "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJ'
        'PcIAriEGAHTVeCUjW2JIZA=="}]}'
    )
    envelope = Envelope.from_bytes(text.encode())
    assert envelope.payload == b"hello world"
    assert [(one.keyid, len(one.sig)) for one in envelope.signatures] == [("", 64)]
    assert Envelope.from_bytes(text.replace("+", "-").encode()) == envelope


@pytest.mark.parametrize("name", sorted(CASES))
def test_documents_on_the_wire_are_the_golden_ones(name: str) -> None:
    """What is signed, and its signature by a fixed key, is fixed to the byte."""
    document, path = CASES[name], GOLDEN / f"signed_{name}.json"
    envelope = signed(document, KEY, SECOND)
    assert envelope.to_bytes() + b"\n" == path.read_bytes()
    read = Envelope.from_bytes(path.read_bytes())
    assert read == envelope
    assert type(document).from_bytes(read.payload) == document


@given(st.text(min_size=1, max_size=30), st.binary(max_size=60), st.text(max_size=9))
def test_an_envelope_reads_back_as_it_was(kind: str, payload: bytes, keyid: str) -> None:
    """Nothing of an envelope is lost or changed on the way."""
    if not kind.isprintable():
        return
    envelope = Envelope(kind, payload, (Signature(keyid, payload[::-1]),))
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope


@given(st.text(max_size=9), st.binary(max_size=9), st.text(max_size=9), st.binary(max_size=9))
def test_no_two_documents_have_the_same_signed_bytes(
    kind: str, payload: bytes, other_kind: str, other: bytes
) -> None:
    """Whatever type and payload hold, a signature of one pair is none of another."""
    same = (kind, payload) == (other_kind, other)
    assert (pae(kind, payload) == pae(other_kind, other)) == same


GOOD = signed(CASES["command_live"]).to_dict()
BAD: dict[str, tuple[Any, str]] = {
    "no object": ([], "not a JSON object"),
    "no payload": ({**GOOD, "payload": None}, "'payload' must be a string"),
    "no base64": ({**GOOD, "payload": "a"}, "payload is not base64"),
    "base64 with line ends": ({**GOOD, "payload": "YQ==\n"}, "payload is not base64"),
    "text that is no base64": ({**GOOD, "payload": "ü"}, "payload is not base64"),
    "a type of no characters": ({**GOOD, "payloadType": ""}, "'payloadType' must be"),
    "signatures of no list": ({**GOOD, "signatures": {}}, "'signatures' must be a list"),
    "a signature of nothing": ({**GOOD, "signatures": [{}]}, "lacks 'sig'"),
    "an id of no text": ({**GOOD, "signatures": [{"sig": "", "keyid": 1}]}, "keyid 1"),
    "too many signatures": (
        {**GOOD, "signatures": [{"sig": ""}] * (MAX_SIGNATURES + 1)},
        "at most 16",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_is_no_envelope_is_refused_by_name(case: str) -> None:
    """The error names what is wrong, and where to look."""
    data, said = BAD[case]
    with pytest.raises(MessageError, match="remote-config") as caught:
        Envelope.from_dict(data)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audience": {}}, "exactly one"),
        ({"audience": {"device": "a", "cohort": "b"}}, "exactly one"),
        ({"audience": {"fleet": "a"}}, "not one of device, cohort"),
        ({"audience": {"device": "../a"}}, "letter or digit"),
        ({"tenant": "a/b"}, "letter or digit"),
        ({"counter": 0}, "integer from 1"),
        ({"counter": True}, "integer from 1"),
        ({"expires_ms": 5, "issued_ms": 5}, "not after"),
        ({"settings": []}, "must be an object"),
        ({"schema_version": 2}, "schema_version 2"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(changes: Any, said: str) -> None:
    """Each field is checked when a document is read."""
    data = {**configuration({}).to_dict(), **changes}
    with pytest.raises(MessageError, match=said):
        Configuration.from_bytes(json.dumps(data).encode())


def test_commands_that_make_no_sense_are_refused() -> None:
    """A name that could be a path, or an end before the beginning, is refused."""
    for change in ({"id": "../x"}, {"device": "a b"}, {"expires_ms": 1}, {"arguments": None}):
        data = {**command("live", {}).to_dict(), **change}
        with pytest.raises(MessageError):
            Command.from_bytes(json.dumps(data).encode())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"serve": {"port": 1}}, "'serve', which may not be set from afar"),
        ({"log": {"file": "/etc/passwd"}}, "'log.file', which may not be set from afar"),
        ({"log": {"prompts": True}}, "log.prompts must be false, not True"),
        ({"log": {"prompts": 0}}, "log.prompts must be false, not 0"),
        ({"log": {"level": "trace"}}, "log.level must be debug or info"),
        ({"routing": {"base_url": "https://evil"}}, "'routing.base_url'"),
        ({"routing": {"cloud": 1}}, "routing.cloud must be true or false"),
        ({"routing": {"reasons": ["whim"]}}, "a list of context and queue"),
        ({"telemetry": {"sample_s": True}}, "a number from 5 to 3600"),
        ({"telemetry": {"sample_s": 4.9}}, "a number from 5 to 3600"),
        ({"telemetry": {"daily_bytes": 1e6}}, "an integer from 100000"),
        ({"telemetry": 3}, "telemetry is not an object"),
        ({"alarms": {"disk": {"series": []}}}, "alarms.disk.series must be a string"),
        ({"alarms": {"disk": True}}, "alarms.disk is not an object"),
        ({"alarms": {"disk": {"raise_above": None}}}, "raise_above must be a number"),
        ({"alarms": {"a/b": False}}, "not a name for an alarm"),
    ],
)
def test_settings_off_the_list_are_refused(settings: Any, said: str) -> None:
    """What may not be set from afar, or not to that, is named."""
    with pytest.raises(MessageError, match="remote-config") as caught:
        check_settings(settings)
    assert said in caught.value.message


def test_every_unknown_setting_is_told_at_once() -> None:
    """Who signs learns of all of them, and of the number of the rest."""
    with pytest.raises(MessageError) as caught:
        check_settings({**SETTINGS, **{f"x{n}": {} for n in range(7)}})
    assert "'x0', 'x1', 'x2', 'x3', 'x4' and 2 more" in caught.value.message
    check_settings(SETTINGS)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("live", {}),
        ("live", {"minutes": 0}),
        ("live", {"minutes": 61}),
        ("live", {"minutes": 1.5}),
        ("live", {"minutes": True}),
        ("live", {"minutes": 5, "prompts": True}),
        ("logs", {"url": 3}),
        ("logs", {"url": "https://" + "a" * 2000}),
        ("logs", {"url": "https://fleet.exämple/"}),
    ],
)
def test_arguments_off_the_list_are_refused(name: str, arguments: Any) -> None:
    """A command says what it needs and nothing else."""
    with pytest.raises(MessageError, match=f"command {name}"):
        check_arguments(command(name, arguments))
