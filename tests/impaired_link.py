"""A bad network between this machine and itself: packets are delayed, lost, cut off and counted.

A TUN interface (root alone may make one) has the address :attr:`ImpairedLink.near`. What is sent to
``far``, its neighbour that does not exist, is read here, may be lost, waits, and is given back with
both addresses swapped: so a connection to ``far`` arrives, from ``far``, at whatever listens on
``near``. Swapping keeps checksums right. Both directions of the connection pass, as IP packets no
larger than the MTU: TCP meets real losses, and what is counted is what a modem would be given. It
needs neither a network namespace nor netem, which not every kernel has.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import Counter
from types import TracebackType

_SET_INTERFACE, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
"""``TUNSETIFF``, ``IFF_TUN``, ``IFF_NO_PI`` of linux/if_tun.h."""
_MTU = 1400
"""Of many mobile networks."""
_LOOK_S = 0.2


class ImpairedLink:
    """A link of this machine to itself.

    Args:
        number: Tells several from one another, 0 to 255.
        delay_s: Of each packet, one way.
        loss: Share of packets that are lost, at random.
        seed: Of the losses.

    Attributes:
        near: Address to listen on.
        far: Address to connect to.
        delay_s: As given; may be changed.
        loss: As given; may be changed.
        is_cut: Whether all packets are lost.
        counts: ``packets`` and ``bytes`` that were sent, headers included, those lost among them;
            ``lost``; ``syn``: connections that were tried.
    """

    def __init__(
        self, number: int = 0, *, delay_s: float = 0.0, loss: float = 0.0, seed: int = 0
    ) -> None:
        self.near, self.far = f"10.213.{number}.1", f"10.213.{number}.2"
        self.delay_s, self.loss, self.is_cut = delay_s, loss, False
        self.counts: Counter[str] = Counter()
        self._name = f"edgekit{number}"
        self._chance = random.Random(seed)
        self._waiting: list[tuple[float, int, bytes]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._relay, daemon=True)

    def __enter__(self) -> ImpairedLink:  # noqa: PYI034  # Self is of 3.11
        self._tun = os.open("/dev/net/tun", os.O_RDWR)
        request = struct.pack("16sH22x", self._name.encode(), _TUN | _NO_HEADER)
        fcntl.ioctl(self._tun, _SET_INTERFACE, request)
        for command in (
            f"addr add {self.near}/30 dev {self._name}",
            f"link set {self._name} up mtu {_MTU} txqueuelen 10000",
        ):
            subprocess.run(["/usr/sbin/ip", *command.split()], check=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._tun)  # which takes the interface away

    def _relay(self) -> None:
        while not self._stopping.is_set():
            ready, _, _ = select.select([self._tun], [], [], self._wait_s())
            if ready:
                self._take(os.read(self._tun, 65536))
            now_s = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now_s:
                os.write(self._tun, heapq.heappop(self._waiting)[2])

    def _wait_s(self) -> float:
        if not self._waiting:
            return _LOOK_S
        return min(max(self._waiting[0][0] - time.monotonic(), 0.0), _LOOK_S)

    def _take(self, packet: bytes) -> None:
        """Count a packet, and lose it or let it wait."""
        if packet[0] >> 4 != 4:  # the kernel's own chatter of IPv6
            return
        self.counts["packets"] += 1
        self.counts["bytes"] += len(packet)
        self.counts["syn"] += _begins(packet)
        if self.is_cut or self._chance.random() < self.loss:
            self.counts["lost"] += 1
            return
        swapped = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
        due_s = time.monotonic() + self.delay_s
        heapq.heappush(self._waiting, (due_s, self.counts["packets"], swapped))


def _begins(packet: bytes) -> bool:
    """Whether a packet is a connection's first: SYN without ACK."""
    flags = packet[4 * (packet[0] & 15) + 13]
    return flags & 0x12 == 0x02
