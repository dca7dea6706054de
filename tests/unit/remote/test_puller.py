"""Pulling over real mutual TLS: a notice has the device look; a bad service disturbs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from remote_cases import NOW_MS, Device1, answer, command, configuration, outcomes, signed
from service_cases import Service, fleet_service

from device.remote.commands import handlers
from device.remote.config import parse_fleet
from device.remote.errors import RefusedError
from device.remote.exchange import Answer, Exchange
from device.remote.puller import Handler, Puller
from edgekit.contracts.signed import Command
from edgekit.contracts.telemetry import CommandNotice
from edgekit.errors import ConfigError, StorageError

HOT: dict[str, Any] = {"alarms": {"temperature": {"raise_above": 95.0}}}
NOTICE = CommandNotice(id="n-1", command="config", issued_ms=NOW_MS, expires_ms=NOW_MS + 1)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with fleet_service(tmp_path) as running:
        yield running


@pytest.fixture
def device(tmp_path: Path) -> Device1:
    return Device1(tmp_path / "remote.json")


@contextlib.asynccontextmanager
async def pulling(puller: Puller) -> AsyncIterator[None]:
    """Let a puller run until the end of the block."""
    task = asyncio.create_task(puller.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


def test_a_notice_has_the_device_look(service: Service, device: Device1) -> None:
    """From another thread, as an MQTT client's; the interval alone would take an hour."""
    remote = device.start()
    puller = Puller(remote, Exchange(service.config()), {}, 3600, gap_s=0, first_s=0)

    async def scene() -> None:
        async with pulling(puller):
            await asyncio.sleep(0.3)
            service.publish(signed(configuration(HOT)))
            await asyncio.to_thread(puller.notice, NOTICE)
            await until(lambda: outcomes(remote) == {"applied": 1})
            service.publish(signed(configuration({}, 2)))
            await asyncio.to_thread(puller.connected)
            await until(lambda: outcomes(remote) == {"applied": 2})

    asyncio.run(scene())
    assert [effective.rules["temperature"].raise_above for effective in device.agent.held] == [
        90.0,
        95.0,
        90.0,
    ]


@dataclass
class Counted:
    """A service that counts how often it is asked.

    Attributes:
        answers: Given in turn; the last one again and again.
        tags: With which it was asked.
    """

    answers: list[Answer | Exception | None]
    tags: list[str] = field(default_factory=list)

    async def pending(self, etag: str = "") -> Answer | None:
        self.tags.append(etag)
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(given, Exception):
            raise given
        return given


def test_a_storm_of_notices_is_one_look(device: Device1) -> None:
    """A thousand notices do not have the device ask a thousand times."""
    service = Counted([None])
    puller = Puller(device.start(), service, {}, 3600, gap_s=0.2, first_s=0)

    async def scene() -> None:
        async with pulling(puller):
            for _ in range(1000):
                puller.notice(NOTICE)
                await asyncio.sleep(0.0005)

    asyncio.run(scene())
    assert 1 < len(service.tags) <= 7


def test_without_notices_it_looks_now_and_then(device: Device1) -> None:
    """A broker that is silent keeps nothing from a device."""
    service = Counted([None])
    puller = Puller(device.start(), service, {}, 0.02, gap_s=0, first_s=0)

    async def scene() -> None:
        async with pulling(puller):
            await until(lambda: len(service.tags) > 5)

    asyncio.run(scene())


def test_a_service_that_is_not_there_is_asked_ever_less(device: Device1) -> None:
    """Pauses double, each drawn between half and all; one that answers starts anew."""
    remote = device.start()
    gone = RefusedError("unreachable", "no route")
    puller = Puller(remote, Counted([gone]), {}, 3600)
    pauses = []
    for _ in range(12):
        asyncio.run(puller.pull())
        pauses.append(puller._pause_s())
    for turn, pause_s in enumerate(pauses):
        longest = min(3600.0, 15.0 * 2**turn)
        assert longest / 2 <= pause_s <= longest
    assert outcomes(remote) == {"unreachable": 12}


def test_a_tag_is_kept_only_where_all_was_taken_up(device: Device1) -> None:
    """What was refused, as signed in the future, is looked at again; what is known is not."""
    good = Answer(answer(signed(configuration(HOT))), '"1"')
    bad = Answer(answer(signed(configuration(HOT, 2, tenant="x"))), '"2"')
    service = Counted([good, None, bad, None])
    puller = Puller(device.start(), service, {}, 3600)
    for _ in range(4):
        asyncio.run(puller.pull())
    assert service.tags == ["", '"1"', '"1"', ""]


def test_commands_are_done_in_order(service: Service, device: Device1) -> None:
    """Live for its minutes; a bundle to where it was asked for; what fails is counted."""
    url = f"{service.url}/v1/diagnostics/c-2"
    service.publish(
        signed(command("live", {"minutes": 7}, 1)),
        signed(command("logs", {"url": url}, 2)),
        signed(command("job", {"release": "1"}, 3)),
        signed(command("logs", {"url": f"{service.url}/v1/diagnostics/c-9"}, 4)),
    )
    remote, exchange = device.start(), Exchange(service.config())
    live: list[float] = []
    puller = Puller(remote, exchange, handlers(live.append, lambda: b"bundle", exchange), 3600)
    asyncio.run(puller.pull())
    assert live == [420.0]
    place = service.folder / "store/acme/diagnostics/orin-1/c-2.tar.zst"
    assert place.read_bytes() == b"bundle"
    assert outcomes(remote) == {"applied": 4, "unsupported": 1, "unreachable": 1}
    asyncio.run(puller.pull())
    assert live == [420.0]


@pytest.mark.parametrize("error", [StorageError("no space left"), RuntimeError("a bug")])
def test_a_command_that_fails_leaves_the_next_to_be_done(device: Device1, error: Exception) -> None:
    """A full disk while a bundle is packed is counted, and told; a fault of ours no less."""
    done = []

    async def fail(_: Command) -> None:
        raise error

    async def work(one: Command) -> None:
        done.append(one.counter)

    commands: dict[str, Handler] = {"logs": fail, "live": work}
    both = answer(
        signed(command("logs", {"url": "https://a"}, 1)), signed(command("live", {"minutes": 1}, 2))
    )
    remote = device.start()
    asyncio.run(Puller(remote, Counted([Answer(both, "")]), commands, 3600).pull())
    assert done == [2]
    assert outcomes(remote) == {"applied": 2, "failed": 1}


GOOD: dict[str, Any] = {
    "url": "https://fleet.example:8443/",
    "tenant": "acme",
    "device": "orin-1",
    "certificate": "/c",
    "key": "/k",
    "ca_file": "/a",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "http://fleet.example"}, "url is not a plain https"),
        ({"url": "https://u:p@fleet.example"}, "url is not a plain https"),
        ({"url": "https://fleet.example/v2"}, "url is not a plain https"),
        ({"url": "https://fleet.example:x"}, "no host and port"),
        ({"upload_hosts": ["a/b"]}, "upload_hosts is not a plain"),
        ({"tenant": "a/b"}, "letter or digit"),
        ({"cohorts": ["*"]}, "letter or digit"),
        ({"cohorts": [f"c{n}" for n in range(17)]}, "over 16 cohorts"),
        ({"interval_s": 0}, "interval_s must be above 0"),
        ({"state_file": "remote.json"}, "no absolute path"),
        ({"urls": ""}, "unknown key"),
        ({"interval_s": "1"}, "must be of type float"),
    ],
)
def test_a_table_that_means_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    """The owner's file is read strictly, too."""
    with pytest.raises(ConfigError, match=said):
        parse_fleet({**GOOD, **changes})


def test_the_table_is_read() -> None:
    """Keys, defaults, and where bundles may go."""
    config = parse_fleet({**GOOD, "upload_hosts": ["Logs.example", "[::1]:9443"]})
    assert config.identity.path == "acme/device/orin-1"
    assert config.allowed_hosts == {"fleet.example:8443", "logs.example:443", "::1:9443"}
    assert (config.interval_s, config.cohorts) == (3600.0, ())
    with pytest.raises(ConfigError, match="lacks"):
        parse_fleet({"url": "https://fleet.example"})
