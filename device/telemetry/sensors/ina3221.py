"""The power monitors of a Jetson's board: INA3221, three rails each, in hwmon.

``in{1..3}_label`` names a rail, ``in{n}_input`` is mV, ``curr{n}_input`` mA; inputs beyond 3 are
shunt voltages and their sum. Source: kernel.org, Documentation/hwmon/ina3221.rst; rails of the AGX
Orin: ``VDD_GPU_SOC``, ``VDD_CPU_CV``, ``VIN_SYS_5V0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device.telemetry.sensors.files import numbered, read_integer, read_text

CHANNELS: Final = 3


@dataclass(frozen=True, slots=True)
class Rail:
    """One rail.

    Attributes:
        name: Its label.
        volts: File of its millivolts.
        amperes: File of its milliamperes.
    """

    name: str
    volts: Path
    amperes: Path

    def microwatts(self) -> int | None:
        """Return its power; None while it cannot be read, as of a channel that is off (ENODATA)."""
        millivolts, milliamperes = read_integer(self.volts), read_integer(self.amperes)
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes


def find_rails(root: Path) -> list[Rail]:
    """Return the named rails of a machine's monitors; none on other machines.

    Args:
        root: Where ``sys`` is.
    """
    return [
        Rail(name, monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
        for monitor in numbered(root / "sys/class/hwmon", "hwmon*")
        if read_text(monitor / "name") == "ina3221"
        for channel in range(1, CHANNELS + 1)
        if (name := read_text(monitor / f"in{channel}_label"))
    ]
