"""The shipped broker configuration: who may reach what, on a real mosquitto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto_broker import Broker
from mqtt_certificates import Authority, Identity
from mqtt_client import Client

from edgekit.contracts.topics import Device, up_filters

ORIN, OTHER = Device("acme", "orin-1"), Device("acme", "orin-2")
UP = ("m/batch", "m/sample", "a/disk", "status/health")
DOWN = ("ack/store", "cmd/job/1")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("access")) as running:
        yield running


def _device(broker: Broker, device: Device, topics: tuple[str, ...] = (), name: str = "") -> Client:
    return Client(
        broker.device_port,
        name or device.path,
        topics,
        identity=broker.device(device),
        server_ca=broker.server_ca,
    )


def _service(broker: Broker, user: str, client_id: str, topics: tuple[str, ...] = ()) -> Client:
    return Client(
        broker.service_port,
        client_id,
        topics,
        identity=broker.services.issue(user),
        server_ca=broker.server_ca,
    )


def test_a_device_publishes_what_devices_publish_and_nothing_else(broker: Broker) -> None:
    """A device publishes its measurements, alarms and status; every other topic is refused."""
    with _device(broker, ORIN) as orin:
        for allowed in UP:
            code = orin.publish(f"ek/{ORIN.path}/{allowed}", b"{}")
            assert not code.is_failure, (allowed, code)
        refused = [f"ek/{ORIN.path}/{tail}" for tail in (*DOWN, "m/other", "x/y")]
        refused += [f"ek/{OTHER.path}/{tail}" for tail in (*UP, *DOWN)]
        refused += ["ek/other/device/orin-1/m/batch", "other"]
        for topic in refused:
            assert orin.publish(topic, b"{}").getName() == "Not authorized", topic


def test_a_device_hears_its_own_topics_alone(broker: Broker) -> None:
    """Whatever it subscribes to, a device gets acknowledgements and commands of its own."""
    everything = ("ek/#", *OTHER.down_filters)
    with _device(broker, ORIN, everything) as orin, _service(broker, "fleet", "fleet-1") as fleet:
        for device in (OTHER, ORIN):
            assert not fleet.publish(f"ek/{device.path}/cmd/job/1", b"{}").is_failure
        orin.wait_for(1)
        with _service(broker, "ingest", "ingest-1") as ingest:
            for device in (OTHER, ORIN):
                assert not ingest.publish(f"ek/{device.path}/ack/store", b"{}").is_failure
        messages = orin.wait_for(2)
        assert orin.stays_at(2)
        assert {message.topic for message in messages} == {
            f"ek/{ORIN.path}/cmd/job/1",
            f"ek/{ORIN.path}/ack/store",
        }


def test_a_device_cannot_take_over_another(broker: Broker) -> None:
    """The client id is the certificate's name, whatever the device says that it is."""
    with _device(broker, OTHER) as other:
        with _device(broker, ORIN, name=OTHER.path) as orin:
            assert not orin.publish(f"ek/{ORIN.path}/m/batch", b"{}").is_failure
        assert not other.publish(f"ek/{OTHER.path}/m/batch", b"{}").is_failure
        assert other.reason is not None
        assert other.reason.getName() == "Success"


def test_ingest_reads_all_and_shares_the_work(broker: Broker) -> None:
    """Ingest gets each message of every tenant's devices once over a shared subscription."""
    shared = tuple(f"$share/ingest/{topic}" for topic in up_filters())
    with (
        _service(broker, "ingest", "ingest-1", shared) as first,
        _service(broker, "ingest", "ingest-2", shared) as second,
        _device(broker, ORIN) as orin,
        _device(broker, Device("umbrella", "orin-1")) as elsewhere,
    ):
        for number in range(10):
            orin.publish(f"ek/{ORIN.path}/m/batch", b"%d" % number)
        elsewhere.publish("ek/umbrella/device/orin-1/a/disk", b"alarm")
        first.wait_until(lambda: len(first.messages) + len(second.messages) >= 11, "all messages")
        assert first.stays_at(len(first.messages))
        payloads = sorted(message.payload for message in (*first.messages, *second.messages))
        assert payloads == sorted([*(b"%d" % number for number in range(10)), b"alarm"])
        assert first.messages
        assert second.messages


@pytest.mark.parametrize(
    ("user", "topic"),
    [
        ("ingest", f"ek/{ORIN.path}/cmd/job/1"),
        ("ingest", f"ek/{ORIN.path}/m/batch"),
        ("fleet", f"ek/{ORIN.path}/ack/store"),
        ("stranger", f"ek/{ORIN.path}/ack/store"),
    ],
)
def test_a_service_is_held_to_its_part(broker: Broker, user: str, topic: str) -> None:
    """No service publishes what another one answers for, and an unknown one nothing."""
    with _service(broker, user, user) as client:
        assert client.publish(topic, b"{}").getName() == "Not authorized"


def _refused(broker: Broker, port: int, identity: Identity) -> None:
    """Hold the broker to refusing a certificate; TLS 1.3 tells after the client's handshake."""
    with Client(port, identity.name, identity=identity, server_ca=broker.server_ca) as client:
        assert client.reason is not None
        assert client.reason.is_failure
        assert not client.was_accepted


def test_each_listener_has_its_own_authority(broker: Broker, tmp_path: Path) -> None:
    """A device's certificate opens no service's listener, nor the other way, nor a stranger's."""
    _refused(broker, broker.service_port, broker.devices.issue("ingest"))
    _refused(broker, broker.device_port, broker.services.issue(ORIN.path))
    _refused(broker, broker.device_port, Authority(tmp_path, "stranger").issue(ORIN.path))


def test_a_revoked_certificate_is_refused(tmp_path: Path) -> None:
    """After the list and a restart a revoked certificate is refused, and others are not."""
    with Broker(tmp_path) as broker:
        orin = broker.device(ORIN)
        with Client(
            broker.device_port, ORIN.path, identity=orin, server_ca=broker.server_ca
        ) as held:
            assert not held.publish(f"ek/{ORIN.path}/m/batch", b"{}").is_failure
        broker.devices.revoke(orin)
        broker.restart()
        _refused(broker, broker.device_port, orin)
        with _device(broker, OTHER) as other:
            assert not other.publish(f"ek/{OTHER.path}/m/batch", b"{}").is_failure
