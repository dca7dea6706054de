"""What a connection costs on the wire: handshake, subscriptions, birth; and a ping (bench_wire)."""

from __future__ import annotations

import time
from collections import Counter

from impaired_link import ImpairedLink
from mosquitto_broker import Broker

from device.telemetry.clock import SystemClock
from device.telemetry.mqtt.backoff import Windows
from device.telemetry.mqtt.connection import Endpoint
from device.telemetry.mqtt.events import Connected
from device.telemetry.mqtt.health import Healths, machine_details
from device.telemetry.mqtt.session import Session
from device.telemetry.mqtt.tls import TlsContexts, TlsFiles
from device.telemetry.sensors.tcp_info import Links
from edgekit.contracts.topics import Device

DEVICE = Device("acme", "orin-00000")
SETTLED_S = 1.5
KEEPALIVE_S = 2
PINGS_S = 20.0


def connect_bytes(link: ImpairedLink, broker: Broker) -> dict[str, float]:
    """Connect twice, the second time with the first one's TLS session, then let it ping.

    Args:
        link: Between device and broker.
        broker: With nothing on its link.

    Returns:
        Bytes both ways: ``full``, ``resumed``, ``ping``.
    """
    identity = broker.device(DEVICE)
    clock = SystemClock()
    healths = Healths(
        DEVICE, lambda: "1f0a52c3d4e5b6a7-3f9c01d2", clock, lambda: (), machine_details
    )
    session = Session(
        Endpoint(link.far, broker.device_port, DEVICE.path, KEEPALIVE_S, look_s=0.05),
        DEVICE.down_filters,
        healths.will,
        contexts=TlsContexts(TlsFiles(broker.server_ca, identity.certificate, identity.key)),
        links=Links(),
        clock=clock,
        windows=Windows(first_s=0.1),
    )
    found = {}
    for kind in ("full", "resumed"):
        before = link.counts.copy()
        _connect(session, healths)
        _settle(session, SETTLED_S)
        found[kind] = _bytes(link, before)
        if kind == "full":
            session.cut("it is to connect again")
            _settle(session, SETTLED_S)
    before = link.counts.copy()
    _settle(session, PINGS_S)
    found["ping"] = round(_bytes(link, before) * KEEPALIVE_S / PINGS_S, 1)
    session.close()
    return found


def _connect(session: Session, healths: Healths) -> None:
    while True:
        session.step()
        if isinstance(session.next_event(0.1), Connected):
            session.publish(healths.topic, healths.birth(), retain=True)
            return


def _settle(session: Session, for_s: float) -> None:
    """Take events in, and begin nothing."""
    end_s = time.monotonic() + for_s
    while (left_s := end_s - time.monotonic()) > 0:
        session.next_event(left_s)


def _bytes(link: ImpairedLink, before: Counter[str]) -> float:
    return (link.counts - before)["bytes"]
