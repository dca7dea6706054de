"""Notices: each is handed on once, and what is wrong with one disturbs nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetry_fakes import FakeClock

from device.telemetry.mqtt.live import Live
from device.telemetry.mqtt.notices import MAX_NOTICE_BYTES, REMEMBERED, Notices
from edgekit.contracts.telemetry import CommandNotice
from edgekit.contracts.topics import Device, Topic
from edgekit.errors import StorageError, TelemetryError

ORIN = Device("acme", "orin-1")


def topic(command: str = "job", number: str = "j-1", device: Device = ORIN) -> Topic:
    return Topic(device, "cmd", command, number)


def payload(
    clock: FakeClock, command: str = "job", number: str = "j-1", for_ms: int = 1000
) -> bytes:
    now_ms = clock.time_ms()
    return CommandNotice(
        id=number, command=command, issued_ms=now_ms, expires_ms=max(now_ms + for_ms, 0)
    ).to_bytes()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def taken() -> list[CommandNotice]:
    return []


@pytest.fixture
def notices(clock: FakeClock, taken: list[CommandNotice]) -> Notices:
    return Notices(ORIN, clock, {"job": taken.append})


def test_a_notice_is_handed_on_once(
    notices: Notices, clock: FakeClock, taken: list[CommandNotice]
) -> None:
    """The broker may repeat it."""
    for outcome in ("taken", "double", "double"):
        assert notices.take_in(topic(), payload(clock)) == outcome
    assert [notice.id for notice in taken] == ["j-1"]
    assert notices.counts == {"taken": 1, "double": 2}


def test_ids_are_remembered_up_to_a_bound(
    notices: Notices, clock: FakeClock, taken: list[CommandNotice]
) -> None:
    """A double is told among the latest thousand, and memory does not grow."""
    for number in range(REMEMBERED + 1):
        notices.take_in(topic(number=f"j-{number}"), payload(clock, number=f"j-{number}"))
    assert notices.take_in(topic(number="j-1"), payload(clock, number="j-1")) == "double"
    assert notices.take_in(topic(number="j-0"), payload(clock, number="j-0")) == "taken"
    assert len(notices._seen) == REMEMBERED
    assert len(taken) == REMEMBERED + 2


def test_an_expired_notice_is_dropped_once_the_clock_is_set(
    notices: Notices, clock: FakeClock
) -> None:
    """A clock that nobody has set cannot tell, so the notice is taken: it only asks for a fetch."""
    assert notices.take_in(topic(), payload(clock, for_ms=0)) == "expired"
    clock.synced = False
    assert notices.take_in(topic(), payload(clock, for_ms=-1000)) == "taken"


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (topic(device=Device("acme", "orin-2")), "another device"),
        (topic(number="j-2"), "differ"),
        (topic(command="logs"), "differ"),
    ],
)
def test_a_notice_that_is_not_ours_is_refused(
    notices: Notices,
    clock: FakeClock,
    of: Topic,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another device's, and one whose topic says something else; the log has why."""
    assert notices.take_in(of, payload(clock)) == "refused"
    assert said in caplog.text


def test_a_large_notice_is_not_even_parsed(
    notices: Notices, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A valid one with a field too long."""
    data = json.loads(payload(clock))
    large = json.dumps({**data, "more": "x" * MAX_NOTICE_BYTES}).encode()
    assert notices.take_in(topic(), large) == "refused"
    assert str(MAX_NOTICE_BYTES) in caplog.text


def test_an_unknown_command_is_counted(notices: Notices, clock: FakeClock) -> None:
    """A newer cloud may know more commands."""
    assert notices.take_in(topic("dance"), payload(clock, "dance")) == "unknown"


@pytest.mark.parametrize("error", [StorageError("full"), ZeroDivisionError()])
def test_a_handler_that_fails_is_counted(clock: FakeClock, error: Exception) -> None:
    """Ours or not: the telemetry goes on."""

    def fail(_: CommandNotice) -> None:
        raise error

    notices = Notices(ORIN, clock, {"job": fail})
    assert notices.take_in(topic(), payload(clock)) == "failed"


@given(st.binary(max_size=300))
def test_no_payload_raises(data: bytes) -> None:
    """Whatever comes is refused, and nothing is called."""
    notices = Notices(ORIN, FakeClock(), {"job": lambda _: pytest.fail("it was called")})
    assert notices.take_in(topic(), data) == "refused"


@pytest.mark.parametrize(("for_s", "seconds"), [(40.0, 40), (86_400.0, 3600)])
def test_live_mode_ends_by_itself(clock: FakeClock, for_s: float, seconds: int) -> None:
    """When its time is over, and after an hour at the latest; a wrong clock changes nothing."""
    live = Live(clock)
    assert not live.is_on
    live.start(for_s)
    seen = []
    for passed_ms in (1000 * seconds - 1, 0, 1):
        clock.pass_ms(passed_ms)
        seen.append(live.is_on)
        clock.wall_ms -= 10**9
    assert seen == [True, True, False]


def test_live_mode_is_refused_without_bytes(clock: FakeClock) -> None:
    """It does not begin, and ends if the bytes come to an end."""
    live = Live(clock)
    live.start(60.0)
    live.is_affordable = False
    assert not live.is_on
    with pytest.raises(TelemetryError, match="spoken for"):
        live.start(60.0)
