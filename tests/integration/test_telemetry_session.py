"""The session with a real mosquitto: birth and will, certificates, refusals, coming back."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto_broker import Broker
from mqtt_certificates import Authority, Identity
from mqtt_client import Client
from telemetry_cases import ORIN, FastClock, Proxy, Store, configuration, notice, telemetry

from device.telemetry.mqtt.backoff import Windows
from device.telemetry.mqtt.connection import Endpoint
from device.telemetry.mqtt.events import Connected, Delivered, Ended, Event, Subscribed
from device.telemetry.mqtt.notices import OUTCOMES
from device.telemetry.mqtt.reasons import CONFIG, KINDS, LINK
from device.telemetry.mqtt.session import Session
from device.telemetry.mqtt.tls import TlsContexts, TlsFiles
from device.telemetry.sensors.tcp_info import Links
from device.telemetry.tuning import Tuning
from edgekit.contracts.telemetry import CommandNotice, Health

HEALTH = f"ek/{ORIN.path}/status/health"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def store(broker: Broker) -> Iterator[Store]:
    with Store(broker).open() as opened:
        yield opened


class Driven:
    """A session that a test drives, and what it said."""

    def __init__(
        self,
        broker: Broker,
        identity: Identity,
        *,
        host: str = "localhost",
        port: int | None = None,
        ca: Path | None = None,
        filters: tuple[str, ...] = ORIN.down_filters,
        will_delay_s: int = 60,
    ) -> None:
        self.links = Links()
        self.clock = FastClock(1.0)
        files = TlsFiles(ca or broker.server_ca, identity.certificate, identity.key)
        self.contexts = TlsContexts(files)
        self.session = Session(
            Endpoint(host, port or broker.device_port, ORIN.path, will_delay_s=will_delay_s),
            filters,
            lambda: (HEALTH, b"will"),
            contexts=self.contexts,
            links=self.links,
            clock=self.clock,
            windows=Windows(first_s=0.2, busy_s=0.2, longest_s=1.0),
        )

    def until(self, kind: type[Event], wait_s: float = 10.0) -> Event:
        """Drive it until an event of a kind comes."""
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            self.session.step()
            event = self.session.next_event(0.1)
            if isinstance(event, kind):
                return event
        raise AssertionError(f"no {kind.__name__} in {wait_s} s")


@pytest.fixture
def closing() -> Iterator[list[Session]]:
    sessions: list[Session] = []
    yield sessions
    for session in sessions:
        session.close()


def test_a_birth_tells_what_the_device_is(broker: Broker, store: Store, tmp_path: Path) -> None:
    """Retained: who subscribes later knows the device, its versions and its encodings."""
    details = {"model": "r1", "digest": None}
    with telemetry(configuration(broker, tmp_path), FastClock(), details=lambda: details):
        store.wait_until(lambda: bool(store.healths), "the birth")
        with Client(broker.plain_port, "late", [HEALTH]) as late:
            (message,) = late.wait_for(1)
    birth = Health.from_bytes(bytes(message.payload))
    assert message.retain
    assert birth.state == "up"
    assert birth.details["encodings"] == "zstd-ek1,zstd,json"
    assert birth.details["model"] == "r1"
    assert {"edgekit", "kernel", "board", "l4t", "python"} <= set(birth.details)


def test_a_goodbye_is_told_at_once(broker: Broker, store: Store, tmp_path: Path) -> None:
    """An agent that is stopped is down with its reason, without the will's delay."""
    with telemetry(configuration(broker, tmp_path), FastClock()):
        store.wait_until(lambda: bool(store.healths), "the birth")
    store.wait_until(lambda: len(store.healths) == 2, "the goodbye")
    birth, goodbye = store.healths
    assert (goodbye.state, goodbye.details["reason"]) == ("down", "stopped")
    assert goodbye.connection == birth.connection


def test_a_fault_of_ours_is_told_as_a_loss(broker: Broker, store: Store, tmp_path: Path) -> None:
    """Telemetry that fails and begins again later has not been up meanwhile."""
    config = configuration(broker, tmp_path, will_delay_s=0)

    def tuning() -> Tuning:
        if store.healths:
            raise RuntimeError("a bug")
        return config.tuning

    with telemetry(config, FastClock(), tuning=tuning):
        store.wait_until(lambda: len(store.healths) == 2, "the will")
    assert [(told.state, told.details.get("reason")) for told in store.healths] == [
        ("up", None),
        ("down", "lost"),
    ]


def test_a_will_follows_a_cut_that_lasts(broker: Broker, closing: list[Session]) -> None:
    """A cut connection brings the will after its delay, and none if the device is back before."""
    driven = Driven(broker, broker.device(ORIN), will_delay_s=1)
    closing.append(driven.session)
    with Client(broker.plain_port, "watcher", [HEALTH]) as watcher:
        driven.until(Connected)
        driven.session.cut("a test")
        driven.until(Ended)
        driven.until(Connected)  # within the delay
        assert watcher.stays_at(0, 2.5)
        driven.session.cut("a test")
        driven.until(Ended)
        (will,) = watcher.wait_for(1)
        assert will.payload == b"will"


def test_a_session_outlives_the_connection(broker: Broker, closing: list[Session]) -> None:
    """What is sent to a device that is away waits for it at the broker."""
    driven = Driven(broker, broker.device(ORIN))
    closing.append(driven.session)
    first = driven.until(Connected)
    driven.until(Subscribed)
    assert isinstance(first, Connected)
    assert not first.session_present
    driven.session.cut("a test")
    driven.until(Ended)
    topic, payload = notice(driven.clock, "job", "j-1")
    with Client(broker.plain_port, "cloud") as cloud:
        cloud.publish(topic, payload)
    second = driven.until(Connected)
    assert isinstance(second, Connected)
    assert second.session_present


def test_notices_reach_their_handler_once(broker: Broker, store: Store, tmp_path: Path) -> None:
    """A double, an expired, a broken and another device's notice disturb nothing."""
    clock, taken = FastClock(), list[CommandNotice]()
    with (
        telemetry(configuration(broker, tmp_path), clock, on_notice=taken.append),
        Client(broker.plain_port, "cloud") as cloud,
    ):
        store.wait_until(lambda: bool(store.healths), "the birth")
        good = notice(clock, "job", "j-1")
        expired = notice(clock, "job", "j-2", for_s=-1)
        prefix = f"ek/{ORIN.path}/cmd"
        for topic, payload in (
            good,
            good,
            expired,
            (f"{prefix}/job/j-3", b"{"),
            (f"{prefix}/job/j-4", good[1]),
            (f"{prefix}/job/j-5", b"x" * 70_000),
            (f"{prefix}/dance/j-6", notice(clock, "dance", "j-6")[1]),
            (f"ek/{ORIN.path}/ack/store", b"\xff"),
            notice(clock, "config", "c-1"),
        ):
            cloud.publish(topic, payload)
        until_s = time.monotonic() + 10
        while len(taken) < 2 and time.monotonic() < until_s:
            time.sleep(0.02)
        seen = len(store.samples)
        store.wait_until(lambda: len(store.samples) > seen, "samples as before")
    assert [(one.command, one.id) for one in taken] == [("job", "j-1"), ("config", "c-1")]
    first, last = min(store.samples), max(store.samples)
    values = store.samples[first].values
    # Told before anything happened, or the first of each would be no increase.
    assert {values[f"notices_total.{outcome}"] for outcome in OUTCOMES} == {0}
    assert {values[f"mqtt_failures_total.{kind}"] for kind in KINDS} == {0}
    values = store.samples[last].values
    assert values["mqtt_malformed_total"] == 1
    assert values["notices_total.taken"] == 2
    assert values["notices_total.double"] == 1
    assert values["notices_total.expired"] == 1
    assert values["notices_total.refused"] == 3
    assert values["notices_total.unknown"] == 1


def test_a_refused_publish_ends_nothing(broker: Broker, closing: list[Session]) -> None:
    """What the access rules refuse comes back as a reason code; the connection stays."""
    driven = Driven(broker, broker.device(ORIN))
    closing.append(driven.session)
    driven.until(Connected)
    refused = driven.session.publish("ek/acme/device/orin-2/m/batch", b"{}")
    event = driven.until(Delivered)
    assert isinstance(event, Delivered)
    assert (event.packet, event.code, event.text) == (refused, 0x87, "Not authorized")
    driven.session.publish(f"ek/{ORIN.path}/m/batch", b"{}")
    again = driven.until(Delivered)
    assert isinstance(again, Delivered)
    assert again.code < 0x80


def test_a_certificate_that_is_renewed_on_disk_is_used(
    broker: Broker, closing: list[Session]
) -> None:
    """An expired one is refused and tried seldom; its renewal brings the device back in moments."""
    old = broker.devices.issue(ORIN.path, lifetime=dt.timedelta(minutes=-1))
    driven = Driven(broker, old)
    driven.session._backoff._windows = Windows(longest_s=3600.0)
    closing.append(driven.session)
    ended = driven.until(Ended)
    assert isinstance(ended, Ended)
    assert "ALERT" in ended.reason.text
    assert driven.session.counts[CONFIG] == 1
    assert driven.session.due_s - driven.clock.now_s() > 1000
    new = broker.device(ORIN)
    shutil.copy(new.key, old.key)
    shutil.copy(new.certificate, old.certificate)
    driven.until(Connected)


def test_a_broker_of_another_authority_is_not_trusted(
    broker: Broker, tmp_path: Path, closing: list[Session]
) -> None:
    """Neither one whose certificate another authority signed, nor one of another name."""
    identity = broker.device(ORIN)
    stranger = Authority(tmp_path / "other", "stranger")
    elsewhere = Proxy(broker.device_port, "127.0.0.2")  # not in the broker's certificate
    try:
        for driven in (
            Driven(broker, identity, ca=stranger.certificate),
            Driven(broker, identity, host="127.0.0.2", port=elsewhere.port),
        ):
            closing.append(driven.session)
            ended = driven.until(Ended)
            assert isinstance(ended, Ended)
            assert "CERTIFICATE_VERIFY_FAILED" in ended.reason.text
            assert driven.session.counts["connects"] == 0
    finally:
        elsewhere.close()


def test_unusable_files_are_named(broker: Broker, closing: list[Session]) -> None:
    """A certificate without its key is one line that names the files, and no try in vain."""
    identity = broker.device(ORIN)
    identity.key.write_bytes(broker.device(ORIN).key.read_bytes())
    driven = Driven(broker, identity)
    closing.append(driven.session)
    ended = driven.until(Ended)
    assert isinstance(ended, Ended)
    assert str(identity.key) in ended.reason.text
    assert driven.session.counts[CONFIG] == 1


def test_a_later_connection_resumes_tls(broker: Broker, closing: list[Session]) -> None:
    """The second handshake sends no certificates: a quarter of the bytes is saved, at least."""
    driven = Driven(broker, broker.device(ORIN))
    closing.append(driven.session)
    spent = []
    for _ in range(2):
        before = driven.links.read(0.0)
        driven.until(Connected)
        driven.until(Subscribed)
        driven.session.cut("a test")
        driven.until(Ended)
        after = driven.links.read(0.0)
        names = ("link_sent_bytes_total.mqtt", "link_received_bytes_total.mqtt")
        spent.append(sum((after[name] or 0) - (before.get(name) or 0) for name in names))
    print(f"handshakes and session: {spent} bytes")  # noqa: T201
    assert spent[1] < 0.75 * spent[0]


def test_a_port_where_nobody_answers_is_given_up(
    broker: Broker, closing: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts and says nothing ends in a failure, and so does no server."""
    monkeypatch.setattr("device.telemetry.mqtt.connection.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        driven = Driven(broker, broker.device(ORIN), port=mute.getsockname()[1])
        closing.append(driven.session)
        ended = driven.until(Ended, 20)
        assert isinstance(ended, Ended)
        assert "timed out" in ended.reason.text
        assert driven.session.counts[LINK] == 1
    ended = driven.until(Ended)
    assert isinstance(ended, Ended)
    assert "refused" in ended.reason.text


def test_a_revoked_device_is_refused(broker: Broker, closing: list[Session]) -> None:
    """It is told so by TLS, and tries seldom."""
    identity = broker.device(ORIN)
    broker.devices.revoke(identity)
    broker.restart()
    driven = Driven(broker, identity)
    closing.append(driven.session)
    ended = driven.until(Ended)
    assert isinstance(ended, Ended)
    assert "REVOKED" in ended.reason.text
    assert driven.session.counts[CONFIG] == 1
