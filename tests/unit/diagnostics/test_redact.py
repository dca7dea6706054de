"""Redaction: nothing private is left of any line, wherever it stands; what helps stays."""

from __future__ import annotations

import ipaddress
import json
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from private_lines import (
    CLIENT,
    CLIENT6,
    HARMLESS,
    ICCID,
    IMEI,
    IMSI,
    KEY,
    LINES,
    MSISDN,
    PROMPT,
    SECRETS,
)

from device.diagnostics.events import Events
from device.diagnostics.redact import MAX_LINE_CHARS, Redactor

TEXT = st.text(max_size=40)
DIGITS = st.text("0123456789", min_size=9, max_size=20)


def left_of(text: str) -> str:
    return Redactor().line(text)


@pytest.mark.parametrize("line", LINES)
def test_nothing_private_is_left_of_a_real_line(line: str) -> None:
    """Identities, cells, numbers, addresses, keys and prompts go, in every form that is known."""
    told = left_of(line)
    assert not [secret for secret in SECRETS if secret.lower() in told.lower()]
    assert not [word for word in PROMPT.split() if len(word) > 3 and word in told]


@pytest.mark.parametrize("line", HARMLESS)
def test_what_helps_stays(line: str) -> None:
    """A bundle of nothing but brackets would help nobody."""
    assert left_of(line) == line


@given(TEXT, DIGITS, TEXT)
def test_no_long_number_is_left(before: str, number: str, after: str) -> None:
    """IMSI, IMEI, ICCID and MSISDN are long numbers: none is left, whatever stands around it."""
    told = left_of(before + number + after)
    assert number not in told


@given(TEXT, st.ip_addresses(), TEXT)
def test_no_address_is_left(
    before: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, after: str
) -> None:
    """Neither as it is written briefly nor in full."""
    for form in (str(address), address.exploded):
        assume(len(form) > 3)
        assert form not in left_of(before + form + after)


@given(
    st.sampled_from(["imsi", "IMEI:", "cell id", "tracking area code |", "own:", "ICCID=", "ci="]),
    st.text("0123456789ABCDEF", min_size=4, max_size=8),
    TEXT,
)
def test_what_is_named_goes_however_short(word: str, value: str, after: str) -> None:
    """A cell's eight hex digits are no long number: their name gives them away."""
    assume(value not in word.upper())
    for text in (f"x {word} {value} {after}", f"{value} is the {word}"):
        assert value not in left_of(text)


@given(st.sampled_from(['"content": ', "prompt=", "text: ", "Bearer "]), st.text(min_size=5))
def test_what_is_asked_goes_to_the_end_of_the_line(word: str, asked: str) -> None:
    """Of a prompt not a word is left, with any quotes, braces or line ends in it."""
    told = left_of(f"failed: {word}{asked}")
    assert told.startswith("failed: ")
    assert told.endswith("[private]") or told == "[modem]"


@given(st.text(max_size=3000))
def test_a_line_stays_a_short_printable_line(text: str) -> None:
    """Nothing of a log can write to a terminal, begin a new line, or fill a bundle."""
    told = left_of(text)
    assert told.isprintable()
    assert len(told) <= MAX_LINE_CHARS + 40


def test_a_number_is_not_cut_into_two_harmless_ones() -> None:
    """Where a long line is cut, half of an identity would not be known for one."""
    for place in (*range(480, 520), *range(4080, 4110)):
        told = left_of("x" * (place - 1) + " " + IMSI + " " + "y" * 30)
        assert IMSI[:7] not in told
    assert left_of("x" * 5000) == " ..."


@pytest.mark.parametrize(
    "hidden",
    [
        "\u200b".join(IMSI),
        "".join(chr(0xFF10 + int(digit)) for digit in IMSI),
        "".join(chr(0x0660 + int(digit)) for digit in IMSI),
        "\x00".join(IMSI),
        f"\x1b[31m{IMSI}\x1b[0m",
    ],
)
def test_a_number_in_disguise_is_a_number(hidden: str) -> None:
    """Full-width digits, digits of other scripts, and what takes no room between them."""
    told = left_of(f"a {hidden} b")
    assert "[number]" in told
    assert IMSI[3:9] not in told


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("wpa: psk=hunter2 is wrong", "hunter2"),
        ("pppd: pwd: hunter2", "hunter2"),
        ("PASS=hunter2", "hunter2"),
        ("port Gi0/1 sees 0a1b.2c3d.4e5f", "2c3d"),
        ("who: 262 011 234 567 890", "234"),
        ("who: 262-011-234-567-890", "234"),
        ("got hf_abcdefghijABCDEFGHIJ", "abcdefghij"),
        ("got AKIAIOSFODNN7EXAMPLE", "IOSFODNN"),
    ],
)
def test_what_is_written_otherwise_goes_too(line: str, secret: str) -> None:
    """Passphrases by their short names, dotted MAC addresses, numbers in threes, short tokens."""
    assert secret not in left_of(line)


def test_a_long_line_takes_no_long_time() -> None:
    """No line makes a pattern try for ever."""
    begun_s = time.monotonic()
    for piece in ("a:", "1.", "@a", "a@", "::", "+1 ", "0123 ", "at+", "-", "ab-", "%:", "Aa1_"):
        left_of(piece * 4000)
    assert time.monotonic() - begun_s < 3


FIELDS: dict[str, Any] = {
    "time_ms": 1_764_000_000_000,
    "memory_total_bytes": 64 << 30,
    "generated_tokens_total": 10**10,
    "ring_dropped_total.age": 10**10,
    "temperature_celsius.cpu": 61.5,
    "ok": True,
    "none": None,
    "prompt_tokens_total": 12,
}


def test_facts_go_by_their_names_as_well() -> None:
    """A number without a unit may be a subscriber's; a key's path is nobody's business."""
    redactor = Redactor()
    assert redactor.value(FIELDS) == FIELDS
    assert not redactor.counts
    private = {
        "modem": int(IMSI),
        "nested": [{"deep": int(IMEI)}, {"imsi": "x"}, float(IMSI)],
        "api_keys": "/etc/edgekit/keys",
        "tls_key": "/etc/edgekit/tls.pem",
        "local_clients": ["camera"],
        "messages": [PROMPT],
        "where": f"https://u:{KEY}@host/",
        ICCID: 1,
        CLIENT: 2,
    }
    told = json.dumps(redactor.value(private))
    assert not [one for one in (*SECRETS, "/etc", "camera") if one in told]
    assert redactor.value({"a": [[[[[[[[[[PROMPT]]]]]]]]]]}) != {"a": [[[[[[[[[[PROMPT]]]]]]]]]]}


@given(
    st.recursive(
        DIGITS | DIGITS.map(int), lambda inner: st.lists(inner) | st.dictionaries(DIGITS, inner)
    )
)
def test_no_facts_leave_a_long_number(value: Any) -> None:
    """In any nesting, as text, as number and as name."""
    told = json.dumps(Redactor().value(value, "x"))
    assert not any(
        len(part) > 8 for part in "".join(c if c.isdigit() else " " for c in told).split()
    )


REQUEST = {
    "time": "2026-11-25T21:39:43.123+00:00",
    "event": "request",
    "id": "req-0123456789abcdef01234567",
    "client": CLIENT,
    "route": "/v1/chat/completions",
    "status": 200,
    "model": "r1",
    "prompt_tokens": 12,
    "seconds": 0.25,
    "finish_reason": "stop",
    "error": None,
}


def events_of(*events: Any) -> list[dict[str, Any]]:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in events]
    return [json.loads(line) for line in Events(Redactor()).lines(lines)]


def test_the_agents_log_keeps_its_known_fields() -> None:
    """A request's line stays whole, with a number for its client: the same in all lines."""
    other = {**REQUEST, "client": "camera"}
    found = events_of(REQUEST, other, REQUEST)
    assert [one["client"] for one in found] == ["client-1", "client-2", "client-1"]
    assert {**found[0], "client": CLIENT} == REQUEST


def test_a_field_that_is_not_known_goes() -> None:
    """Whatever a later release or a broken line puts there."""
    extra = {"prompt": PROMPT, "x": PROMPT, "messages": [PROMPT], "user": KEY, "port": IMSI}
    (found,) = events_of({**REQUEST, **extra})
    assert set(found) == set(REQUEST)
    wrong = {"time": PROMPT, "status": int(IMSI), "id": PROMPT, "digest": KEY, "seconds": PROMPT}
    (found,) = events_of({**REQUEST, **wrong})
    assert not set(wrong) & set(found)


def test_a_message_is_told_only_where_it_is_ours() -> None:
    """What broke an agent may be quoted by an error that is not ours."""
    told = {"event": "engine_fault", "message": "a step has run for 61 s"}
    quoting = {"event": "agent_failed", "error": "ValueError", "message": PROMPT}
    assert events_of(told, quoting) == [told, {"event": "agent_failed", "error": "ValueError"}]


def test_what_is_no_event_is_free_text() -> None:
    """A traceback in the journal, a number, a list: redacted as lines, empty ones left out."""
    found = events_of(
        f"Traceback from {CLIENT}", "", "[1]", "NaN", f'{{"event": "{MSISDN}', "[" * 9999
    )
    assert [set(one) for one in found] == [{"text"}] * 5
    assert CLIENT not in json.dumps(found)
    assert MSISDN not in json.dumps(found)


@given(
    st.dictionaries(
        st.sampled_from([*REQUEST, "message", "x"]),
        st.recursive(
            st.none() | st.text() | st.integers() | st.floats() | st.sampled_from(SECRETS),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_any_event_is_told_without_what_is_private(event: dict[str, Any]) -> None:
    """Whatever value stands in whatever field."""
    told = json.dumps(events_of({**event, "event": event.get("event", "log")}), ensure_ascii=False)
    for secret in (IMSI, IMEI, ICCID, MSISDN, CLIENT, CLIENT6, KEY):
        assert secret not in told
