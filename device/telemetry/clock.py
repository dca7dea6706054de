"""Time as the ring needs it: one clock that never jumps, and one that may be wrong.

A device without a battery for its clock boots in the past and learns the time once it is online.
Until then its times are marked; see ``Ring.redate``.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Protocol

from device.telemetry.sensors.files import read_text

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMEX_BYTES, _STATUS_OFFSET = 208, 40
"""``struct timex`` of 64-bit Linux, and where its ``status`` is (man 2 adjtimex)."""
_STA_UNSYNC = 0x40


class Clock(Protocol):
    """What tells the time."""

    def monotonic_ms(self) -> int:
        """Return milliseconds since the boot, sleep included."""
        ...

    def time_ms(self) -> int:
        """Return milliseconds since 1970 UTC, as far as the device knows."""
        ...

    def is_synced(self) -> bool:
        """Whether NTP holds the time."""
        ...


class SystemClock:
    """The kernel's clocks."""

    def __init__(self) -> None:
        self._adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex

    def monotonic_ms(self) -> int:
        """Return milliseconds since the boot, sleep included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def time_ms(self) -> int:
        """Return milliseconds since 1970 UTC, as far as the device knows."""
        return time.time_ns() // 1_000_000

    def is_synced(self) -> bool:
        """Whether a daemon (chrony, ntpd, systemd-timesyncd) has told the kernel the time."""
        timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes is 0: nothing is set
        if self._adjtimex(timex) < 0:
            return False
        return not ctypes.c_int.from_buffer(timex, _STATUS_OFFSET).value & _STA_UNSYNC


def boot_id(path: Path = _BOOT_ID) -> str:
    """Return the kernel's name of this boot, 16 hex digits; zeros where it tells none."""
    return (read_text(path) or "").replace("-", "")[:16] or "0" * 16
