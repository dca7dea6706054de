"""What the kernel knows of our own TCP connections: retransmissions, round trip, bytes.

It costs no byte on the air. A retransmission is not a lost packet (the kernel also repeats what was
only late), so these are series of their own beside the probe's.

Layout: ``struct tcp_info`` of ``include/uapi/linux/tcp.h``. It only ever grows; a kernel that is
older fills less of it, and what it does not fill is None.
"""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass

from edgekit.contracts.series import Number, Values

_RTT, _TOTAL_RETRANS, _BYTES_RECEIVED, _SEGS_OUT, _BYTES_SENT = 68, 100, 128, 136, 200
"""Offsets in bytes."""
_SIZE = 256


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """A connection's counters since it was made; None where the kernel is too old.

    Attributes:
        rtt_us: Smoothed round trip; 0 before the first is measured.
        retransmitted: Segments sent again.
        segments_out: Segments sent, those included.
        sent_bytes: Payload sent, repetitions included.
        received_bytes: Payload received.
    """

    rtt_us: int | None
    retransmitted: int | None
    segments_out: int | None
    sent_bytes: int | None
    received_bytes: int | None


def parse_tcp_info(data: bytes) -> TcpInfo:
    """Read what ``getsockopt(IPPROTO_TCP, TCP_INFO)`` returned, however long."""

    def field(kind: str, offset: int) -> int | None:
        if offset + struct.calcsize(kind) > len(data):
            return None
        return int(struct.unpack_from(kind, data, offset)[0])

    return TcpInfo(
        rtt_us=field("=I", _RTT),
        retransmitted=field("=I", _TOTAL_RETRANS),
        segments_out=field("=I", _SEGS_OUT),
        sent_bytes=field("=Q", _BYTES_SENT),
        received_bytes=field("=Q", _BYTES_RECEIVED),
    )


def read_tcp_info(connection: socket.socket) -> TcpInfo | None:
    """Return a connection's counters; None if it is closed or no TCP."""
    try:
        return parse_tcp_info(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE))
    except OSError:
        return None


_COUNTERS = {
    "link_segments_sent_total": "segments_out",
    "link_segments_retransmitted_total": "retransmitted",
    "link_sent_bytes_total": "sent_bytes",
    "link_received_bytes_total": "received_bytes",
}


class Links:
    """Counts over all connections that bear a name, closed ones included.

    Whoever opens a connection says so by :meth:`watch`, and lets it go by :meth:`forget` before it
    closes it, so that its last counts are not missed. Connections may live in other threads.
    """

    name = "links"

    def __init__(self) -> None:
        self._open: dict[str, tuple[socket.socket, TcpInfo | None]] = {}
        self._totals: dict[str, dict[str, int]] = {}
        self._lock = threading.RLock()

    def watch(self, name: str, connection: socket.socket) -> None:
        """Count a connection from now on, under a name such as ``mqtt``; it replaces another."""
        with self._lock:
            self.forget(name)
            self._totals.setdefault(name, dict.fromkeys(_COUNTERS, 0))
            self._open[name] = (connection, None)

    def forget(self, name: str) -> None:
        """Count a connection a last time."""
        with self._lock:
            if name in self._open:
                self._count(name)
                del self._open[name]

    def read(self, now_s: float) -> Values:
        """Return the readings of every name that was ever watched."""
        del now_s
        found: dict[str, Number | None] = {}
        with self._lock:
            for name, totals in self._totals.items():
                info = self._count(name) if name in self._open else None
                found.update({f"{series}.{name}": total for series, total in totals.items()})
                rtt_us = info.rtt_us if info else None
                found[f"link_rtt_ms.{name}"] = rtt_us / 1000 if rtt_us else None
        return found

    def _count(self, name: str) -> TcpInfo | None:
        """Add what a connection counted since the last time."""
        connection, last = self._open[name]
        info = read_tcp_info(connection)
        if info is None:
            return None
        for series, attribute in _COUNTERS.items():
            now, before = getattr(info, attribute), getattr(last, attribute, None)
            self._totals[name][series] += (now or 0) - (before or 0)
        self._open[name] = (connection, info)
        return info
