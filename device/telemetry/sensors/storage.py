"""How full file systems are, and how worn the flash under them is.

| what | where | source |
|---|---|---|
| eMMC wear | ``/sys/class/mmc_host/mmc*/mmc*:*/life_time``: ``0x01 0x02``, types A and B | [1] |
| NVMe temperature | hwmon of name ``nvme``: ``temp1_input``, 1/1000 degree | [2] |

An eMMC's estimate comes in tenths: 0x01 is 0 to 10 % used, 0x0A 90 to 100 %, 0x0B beyond; 0x00 is
not defined. The upper end is reported, of the more worn type. An NVMe's own estimate needs an
ioctl as root and is not read.

[1] JESD84-B51 DEVICE_LIFE_TIME_EST_TYP; ``Documentation/driver-api/mmc/mmc-dev-attrs.rst`` of Linux
[2] ``drivers/nvme/host/hwmon.c``
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from device.telemetry.sensors.files import numbered, read_integer, read_text
from edgekit.contracts.series import Number, Values

_ROOT = Path("/")
_LIFE = re.compile(r"0x([0-9a-fA-F]{2}) 0x([0-9a-fA-F]{2})")
_WORN_OUT = 0x0B


class Storage:
    """Reads file systems and disks.

    Args:
        mounts: File systems to watch.
        root: Where ``sys`` is.
    """

    name = "storage"

    def __init__(self, mounts: Sequence[Path] = (_ROOT,), root: Path = _ROOT) -> None:
        self._mounts = mounts
        self._root = root

    def read(self, now_s: float) -> Values:
        """Return the readings; a mount that is not there is None."""
        del now_s
        found: dict[str, Number | None] = {}
        for mount in self._mounts:
            ratio, free_bytes = _space(mount)
            found[f"disk_used_ratio.{mount}"] = ratio
            found[f"disk_free_bytes.{mount}"] = free_bytes
        for path in numbered(self._root / "sys/class/mmc_host", "mmc*/mmc*:*/life_time"):
            disk = path.parent.parent.name.replace("mmc", "mmcblk")
            found[f"storage_life_used_ratio.{disk}"] = parse_life(read_text(path) or "")
        for monitor in numbered(self._root / "sys/class/hwmon", "hwmon*"):
            if read_text(monitor / "name") == "nvme":
                value = read_integer(monitor / "temp1_input")
                name = f"storage_temperature_celsius.{(monitor / 'device').resolve().name}"
                found[name] = None if value is None else value / 1000
        return found


def parse_life(text: str) -> float | None:
    """Return the worn share of an eMMC, at most 1.1; None where it says nothing."""
    match = _LIFE.fullmatch(text)
    if match is None:
        return None
    steps = [int(digits, 16) for digits in match.groups()]
    known = [step for step in steps if 0 < step <= _WORN_OUT]
    return max(known) / 10 if known else None


def _space(mount: Path) -> tuple[float | None, int | None]:
    """Return the used share as ``df`` counts it, and what is free for unprivileged programs."""
    try:
        stat = os.statvfs(mount)
    except OSError:
        return None, None
    used, free = stat.f_blocks - stat.f_bfree, stat.f_bavail
    ratio = round(used / (used + free), 4) if used + free > 0 else None
    return ratio, free * stat.f_frsize
