"""Counts lost packets: small UDP probes that a reflector echoes, within a byte budget a day.

A ratio of a hundred pings says nothing of 0.1 %: what is reported are counters, from which the
device's alarm and the cloud's rules take windows. A probe that the device itself could not send
(no route, no interface) is not a lost packet, nor is one that met no reflector; both have counters.

Datagram, echoed unchanged: ``EKP1``, 8 random bytes of this run, a 4-byte number, big-endian.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from edgekit.contracts.series import Values

_MAGIC = b"EKP1"
_FORM = struct.Struct(">4s8sI")
_OVERHEAD_BYTES = 28
"""IPv4 and UDP headers; IPv6 has 20 more."""
_DAY_S = 86_400.0
PROBE_BYTES = 2 * (_FORM.size + _OVERHEAD_BYTES)
"""What a probe and its echo cost on the air, over IPv4."""


class EchoProbe:
    """Sends a probe now and then and counts what comes back.

    Args:
        address: IPv4 address or name and port of the reflector.
        interval_s: Time between two probes.
        timeout_s: After this a probe is lost; what comes later does not count.
        day_bytes: Most bytes a day, both ways; spent evenly, as the interval is made longer.
    """

    name = "probe"

    def __init__(
        self,
        address: tuple[str, int],
        *,
        interval_s: float = 1.0,
        timeout_s: float = 5.0,
        day_bytes: int = 8_000_000,
    ) -> None:
        self._address = address
        self._shortest_s = interval_s
        self.interval_s = self._interval_s(day_bytes)
        self._timeout_s = timeout_s
        self._run = os.urandom(8)
        self._number = 0
        self._waiting: dict[int, float] = {}
        self._due_s = float("-inf")
        self._socket: socket.socket | None = None
        self.answered = self.lost = self.unsent = self.refused = 0

    @property
    def sent(self) -> int:
        """Probes whose fate is known: those that wait count neither as sent nor as lost."""
        return self.answered + self.lost

    def allow(self, day_bytes: int) -> None:
        """Let it have other bytes a day from the next probe on, which comes in the new interval."""
        interval_s = self._interval_s(day_bytes)
        self._due_s += interval_s - self.interval_s
        self.interval_s = interval_s

    def tick(self, now_s: float) -> None:
        """Take in what came, give up what is late, send what is due; never waits.

        Args:
            now_s: Monotonic time; call it about as often as the interval says.
        """
        self._receive()
        for number in [
            n for n, sent_s in self._waiting.items() if now_s - sent_s > self._timeout_s
        ]:
            del self._waiting[number]
            self.lost += 1
        if now_s >= self._due_s:
            self._due_s = max(self._due_s, now_s) + self.interval_s
            self._send(now_s)

    def read(self, now_s: float) -> Values:
        """Return the readings."""
        self.tick(now_s)
        return {
            "probe_sent_total": self.sent,
            "probe_lost_total": self.lost,
            "probe_unsent_total": self.unsent,
            "probe_refused_total": self.refused,
        }

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _interval_s(self, day_bytes: int) -> float:
        """Return the time between two probes that takes a day's bytes, or less."""
        return max(self._shortest_s, PROBE_BYTES * _DAY_S / max(day_bytes, 1))

    def _send(self, now_s: float) -> None:
        self._number = (self._number + 1) % 2**32
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                self._socket.connect(self._address)
            self._socket.send(_FORM.pack(_MAGIC, self._run, self._number))
        except ConnectionRefusedError:  # the answer to an earlier probe
            self._was_refused()
        except OSError:
            self.unsent += 1
            self.close()  # the address may have changed
        else:
            self._waiting[self._number] = now_s

    def _receive(self) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(256)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._was_refused()
                continue
            except OSError:
                self.close()
                return
            with contextlib.suppress(struct.error):
                magic, run, number = _FORM.unpack(data)
                if (magic, run) == (_MAGIC, self._run) and number in self._waiting:
                    self.answered += 1
                    del self._waiting[number]

    def _was_refused(self) -> None:
        """Take the oldest probe that waits for the one that was refused."""
        self.refused += 1
        if self._waiting:
            del self._waiting[min(self._waiting)]
