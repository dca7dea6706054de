"""The clock of a folder of simulated devices: its seconds may be short, and it never goes back.

Where a process is killed and started again, or several share a folder, they must agree on what time
it is. So the folder keeps when the clock began; one file a boot of the kernel, as the monotonic
clock begins anew with each.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

from device.telemetry.clock import boot_id
from edgekit.errors import ConfigError, StorageError, first_line

MAX_SPEED = 1000.0


class SimulatedClock:
    """A device's clock; NTP holds it.

    Args:
        speed: Its seconds in a real one.
        boot_ms: Milliseconds since the boot when it began.
        wall_ms: Milliseconds since 1970 UTC then.
    """

    def __init__(self, speed: float, boot_ms: int, wall_ms: int) -> None:
        self.speed = speed
        self._boot_ms, self._wall_ms = boot_ms, wall_ms

    def monotonic_ms(self) -> int:
        """Return milliseconds since the boot of the simulation's kernel, sped up."""
        return int(boottime_ms() * self.speed)

    def time_ms(self) -> int:
        """Return milliseconds since 1970 UTC; it was right when the folder was new."""
        return self._wall_ms + int((boottime_ms() - self._boot_ms) * self.speed)

    def is_synced(self) -> bool:
        """Whether NTP holds the time: always."""
        return True


def boottime_ms() -> float:
    """Return real milliseconds since the boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e6


def open_clock(folder: Path, speed: float) -> SimulatedClock:
    """Return the clock of a folder's devices, which begins now if none has begun.

    Args:
        folder: Of the rings; it is made.
        speed: Device seconds in a real second.

    Raises:
        ConfigError: The speed is out of range, or the folder's devices ran at another.
        StorageError: The folder cannot be written, or its file is none of a clock.
    """
    if not 0 < speed <= MAX_SPEED:
        raise ConfigError(f"speed is {speed:g}, and must be above 0 and at most {MAX_SPEED:g}")
    path = folder / f"clock-{boot_id()}.json"
    began = {"speed": speed, "boot_ms": int(boottime_ms()), "wall_ms": time.time_ns() // 1_000_000}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_new(path, json.dumps(began))
        told = json.loads(path.read_text(encoding="utf-8"))
        clock = SimulatedClock(float(told["speed"]), int(told["boot_ms"]), int(told["wall_ms"]))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} says no time: {first_line(error)}", "Delete it, or name another folder"
        ) from error
    if clock.speed != speed:
        raise ConfigError(
            f"the devices of {folder} ran at speed {clock.speed:g}, not {speed:g}: their clocks "
            "would go back",
            "Use that speed, or another folder",
        )
    return clock


def _write_new(path: Path, text: str) -> None:
    """Write a file whole unless there is one; of several processes one wins."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.link(name, path)
    except FileExistsError:
        return
    finally:
        Path(name).unlink()
