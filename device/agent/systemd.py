"""Tells systemd how the agent is: sd_notify(3), its protocol by hand.

PyPI's ``sdnotify`` (0.3.2, 2017, no types) sends the same datagrams, but swallows every error and
knows no ``MONOTONIC_USEC``: these lines are less than a dependency.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from edgekit.errors import StorageError


class Notifier:
    """Sends states to the socket that systemd named; does nothing where none did.

    Args:
        environment: Has ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` under systemd.

    Attributes:
        watchdog_s: Seconds in which systemd wants to hear from the agent; None if it does not care.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        usec = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted = for_us and usec.isdecimal() and int(usec) > 0  # 0 is none, too
        self.watchdog_s = int(usec) / 1e6 if wanted else None
        self._status = ""

    def ready(self) -> None:
        """Say that the agent listens, or has done what it was told to do again."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that it does what it is told by SIGHUP; ``ready`` ends that."""
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self) -> None:
        """Say that it ends."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Say that all is well."""
        self._send("WATCHDOG=1")

    def status(self, words: str) -> None:
        """Say a line for ``systemctl status``, if it is another than the last."""
        if words != self._status:
            self._status = words
            self._send(f"STATUS={words}")

    def _send(self, state: str) -> None:
        """Send a datagram.

        Raises:
            StorageError: There is a socket, and it cannot be reached.
        """
        if not self._address:
            return
        # A leading @ stands for the NUL of the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.connect(address)
                sender.sendall(state.encode())
        except OSError as error:
            raise StorageError(
                f"cannot tell systemd at {self._address}: {error.strerror or error}",
                "Unset NOTIFY_SOCKET where no systemd listens",
            ) from error
