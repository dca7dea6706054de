"""The link: TCP_INFO of a real connection, and probes that are lost, refused, late or forged."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given
from hypothesis import strategies as st

from device.telemetry.sensors.probe import PROBE_BYTES, EchoProbe
from device.telemetry.sensors.tcp_info import Links, TcpInfo, parse_tcp_info, read_tcp_info


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two sockets over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with client, peer:
            yield client, peer


def exchange(client: socket.socket, peer: socket.socket, size: int) -> None:
    """Send bytes one way and a tenth of them back."""
    sender = threading.Thread(target=client.sendall, args=(b"x" * size,))
    sender.start()
    left = size
    while left:
        left -= len(peer.recv(65536))
    sender.join()
    peer.sendall(b"y" * (size // 10))
    left = size // 10
    while left:
        left -= len(client.recv(65536))


def test_a_real_connection_is_counted() -> None:
    """Bytes are exact but for what was repeated, segments and the round trip are there."""
    with connection() as (client, peer):
        exchange(client, peer, 300_000)
        info = read_tcp_info(client)
        assert info is not None
        assert info.received_bytes == 30_000
        assert info.sent_bytes is not None
        assert info.retransmitted is not None
        assert info.sent_bytes >= 300_000
        assert (info.sent_bytes == 300_000) == (info.retransmitted == 0)
        assert info.segments_out is not None
        assert info.segments_out >= 5
        assert info.rtt_us is not None
        assert 0 < info.rtt_us < 1_000_000


def test_a_closed_socket_has_no_readings() -> None:
    """None, not zeros."""
    with connection() as (client, _):
        pass
    assert read_tcp_info(client) is None


@given(st.binary(max_size=300))
def test_any_length_is_parsed(data: bytes) -> None:
    """An older kernel's shorter answer lacks its last fields; no length raises."""
    info = parse_tcp_info(data)
    assert (info.rtt_us is None) == (len(data) < 72)
    assert (info.sent_bytes is None) == (len(data) < 208)
    assert parse_tcp_info(b"") == TcpInfo(None, None, None, None, None)


def test_counts_go_on_over_reconnects() -> None:
    """A name's counters only grow, whatever becomes of its sockets."""
    links = Links()
    for earlier in (0, 10_010):
        with connection() as (client, peer):
            links.watch("mqtt", client)
            exchange(client, peer, 10_000)
            values = links.read(0)
            assert values["link_sent_bytes_total.mqtt"] == earlier + 10_000
            assert values["link_rtt_ms.mqtt"]
            exchange(client, peer, 10)
            links.forget("mqtt")
            exchange(client, peer, 90)  # nobody counts any more
        values = links.read(0)
        assert values["link_sent_bytes_total.mqtt"] == earlier + 10_010
        assert values["link_rtt_ms.mqtt"] is None


class Reflector:
    """Echoes datagrams on loopback, or what it is told to."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(5)
        self.address: tuple[str, int] = self.socket.getsockname()

    def take(self) -> tuple[bytes, tuple[str, int]]:
        data, sender = self.socket.recvfrom(256)
        return data, sender

    def echo(self) -> None:
        data, sender = self.take()
        self.socket.sendto(data, sender)


def counts(probe: EchoProbe) -> tuple[int, int, int, int]:
    return probe.sent, probe.lost, probe.unsent, probe.refused


def arrived(probe: EchoProbe, now_s: float, answered: int) -> None:
    """Tick until loopback has delivered."""
    deadline = time.monotonic() + 5
    while probe.answered < answered and time.monotonic() < deadline:
        probe.tick(now_s)


def test_probes_are_answered_or_lost() -> None:
    """What waits counts as neither; what comes late, twice or from elsewhere does not count."""
    reflector = Reflector()
    probe = EchoProbe(reflector.address, interval_s=1, timeout_s=5)
    probe.tick(0.0)
    assert counts(probe) == (0, 0, 0, 0)
    reflector.echo()
    arrived(probe, 0.5, 1)
    assert counts(probe) == (1, 0, 0, 0)
    probe.tick(1.0)
    late, sender = reflector.take()
    for now_s in (1.5, 1.9):
        probe.tick(now_s)
    reflector.socket.sendto(b"EKP1" + bytes(12), sender)
    reflector.socket.sendto(b"short", sender)
    probe.tick(6.5)
    assert counts(probe) == (2, 1, 0, 0)
    reflector.socket.sendto(late, sender)
    reflector.take()
    time.sleep(0.05)
    values = probe.read(6.6)
    assert (values["probe_sent_total"], values["probe_lost_total"]) == (2, 1)
    probe.close()
    reflector.socket.close()


def test_no_reflector_is_not_packet_loss() -> None:
    """A port that nobody listens on is refused, and said to be."""
    reflector = Reflector()
    reflector.socket.close()
    probe = EchoProbe(reflector.address, interval_s=1)
    for second in range(20):
        probe.tick(float(second))
        time.sleep(0.005)
    assert probe.refused > 5
    assert probe.lost == 0
    probe.close()


def test_no_route_is_not_packet_loss() -> None:
    """What the device itself cannot send is counted apart: 240/4 is no address to send to."""
    probe = EchoProbe(("255.255.255.255", 9), interval_s=1)
    for second in range(3):
        probe.tick(float(second))
    assert counts(probe) == (0, 0, 3, 0)


def test_the_days_budget_is_kept() -> None:
    """The interval grows until a day's probes and echoes fit, and ticks do not catch up."""
    reflector = Reflector()
    probe = EchoProbe(reflector.address, interval_s=1, day_bytes=1_000_000)
    assert 86_400 / probe.interval_s * PROBE_BYTES <= 1_000_000
    for second in (0.0, 1000.0, 1000.1, 1000.2):
        probe.tick(second)
    assert probe._number == 2
    probe.close()
    reflector.socket.close()


def test_other_bytes_a_day_count_from_the_next_probe_on() -> None:
    """None stop it, and more again have it go on in time."""
    reflector = Reflector()
    probe = EchoProbe(reflector.address, interval_s=1, day_bytes=1_000_000)
    probe.tick(0.0)
    probe.allow(0)
    probe.tick(86_400.0)
    assert probe._number == 1
    probe.allow(8_000_000)
    assert probe.interval_s == 1.0
    probe.tick(86_401.0)
    assert probe._number == 2
    probe.close()
    reflector.socket.close()
