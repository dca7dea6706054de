"""Birth and will: what the cloud knows of a device before its first sample, and after its last.

Both bear the number of their connection. It grows with every connect of a boot, so the will of an
earlier connection, published late, is told from the birth of the present one.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path

from device.telemetry.clock import Clock
from device.telemetry.sensors.files import read_text
from edgekit import __version__
from edgekit.batch_encoding import ENCODINGS
from edgekit.contracts.message import CLOCKS
from edgekit.contracts.series import Number
from edgekit.contracts.telemetry import LOST, STOPPED, Health
from edgekit.contracts.topics import Device, Topic
from edgekit.power import Jetson, read_machine

Details = Mapping[str, str | Number | None]
_ROOT = Path("/")


def machine_details(root: Path = _ROOT) -> dict[str, str | Number | None]:
    """Return facts of this machine and release that a birth tells.

    Args:
        root: Where ``proc``, ``sys`` and ``etc`` are.
    """
    machine = read_machine(root)
    jetson = machine if isinstance(machine, Jetson) else None
    release = (read_text(root / "etc/nv_tegra_release") or "").splitlines()[:1]
    return {
        "encodings": ",".join(ENCODINGS),
        "edgekit": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "board": jetson.board if jetson else None,
        "power_mode": jetson.power_mode if jetson else None,
        "l4t": release[0].lstrip("# ")[:100] if release else None,
    }


class Healths:
    """Makes the messages on ``status/health``.

    Args:
        device: Who we are.
        boot: Returns the ring's boot.
        clock: The ring's.
        alarms: Returns what is raised, ``alarm:reading``.
        details: Returns the birth's facts.
    """

    def __init__(
        self,
        device: Device,
        boot: Callable[[], str],
        clock: Clock,
        alarms: Callable[[], tuple[str, ...]],
        details: Callable[[], Details],
    ) -> None:
        self._boot, self._clock = boot, clock
        self._alarms, self._details = alarms, details
        self._connection = 0
        self.topic = str(Topic(device, "status", "health"))

    def will(self) -> tuple[str, bytes]:
        """Return topic and payload of the next connection's will, and begin to count it.

        The number is the milliseconds since the boot: it grows over restarts of the agent without
        being kept anywhere.
        """
        self._connection = max(self._connection + 1, self._clock.monotonic_ms())
        return self.topic, self._health("down", {"reason": LOST}).to_bytes()

    def birth(self) -> bytes:
        """Return the payload of the present connection's birth."""
        return self._health("up", self._details(), self._alarms()).to_bytes()

    def goodbye(self) -> bytes:
        """Return the payload of the present connection's end, when the agent is stopped."""
        return self._health("down", {"reason": STOPPED}).to_bytes()

    def _health(self, state: str, details: Details, alarms: tuple[str, ...] = ()) -> Health:
        return Health(
            boot=self._boot(),
            time_ms=self._clock.time_ms(),
            clock=CLOCKS[0] if self._clock.is_synced() else CLOCKS[1],
            state=state,
            connection=max(self._connection, 1),
            alarms=alarms,
            details=details,
        )
