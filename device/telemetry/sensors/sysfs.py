"""The GPU, the clocks, the thermal zones and the power monitors of an Orin, from sysfs.

| what | where | unit |
|---|---|---|
| GPU load | ``/sys/devices/platform/gpu.0/load``, or ``17000000.gpu/load`` beside | per mille |
| GPU clock | ``/sys/class/devfreq/17000000.gpu/cur_freq`` (``.ga10b`` until JetPack 5) | Hz |
| CPU clock | ``/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq`` | kHz |
| temperatures | ``/sys/class/thermal/thermal_zone*/{type,temp}`` | 1/1000 degree |
| rails | see ``ina3221.py`` | mV, mA |

A zone that is switched off fails to be read, or says -256 degrees: None. Sources: jetson_stats'
``gpu.py`` and ``power.py`` (paths alone), docs.nvidia.com Jetson Linux r36.4 "Thermal".
"""

from __future__ import annotations

import re
from pathlib import Path

from device.telemetry.sensors.files import numbered, read_integer, read_text
from device.telemetry.sensors.ina3221 import find_rails
from edgekit.contracts.series import Number, Values

_ROOT = Path("/")
_GPU_LOADS = (
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/class/devfreq/17000000.gpu/device/load",
    "sys/class/devfreq/17000000.ga10b/device/load",
)
_GPU_CLOCKS = (
    "sys/class/devfreq/17000000.gpu/cur_freq",
    "sys/class/devfreq/17000000.ga10b/cur_freq",
)
_OFF_MILLICELSIUS = -256_000
_UNUSED_RAIL = "NC"
_NOT_LABEL = re.compile(r"[^A-Za-z0-9_-]+")


class Sysfs:
    """Reads what sysfs shows.

    Args:
        root: Where ``sys`` is.
    """

    name = "sysfs"

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root

    def read(self, now_s: float) -> Values:
        """Return the readings; kinds that the machine does not have are missing."""
        del now_s
        return {**self._gpu(), **self._cpu(), **self._zones(), **self._rails()}

    def _gpu(self) -> dict[str, Number | None]:
        load = self._first(_GPU_LOADS)
        hertz = self._first(_GPU_CLOCKS)
        found: dict[str, Number | None] = {}
        if load is not None:
            found["gpu_load_percent"] = load / 10 if 0 <= load <= 1000 else None
        if hertz is not None:
            found["gpu_mhz"] = hertz / 1e6
        return found

    def _cpu(self) -> dict[str, Number | None]:
        policies = numbered(self._root / "sys/devices/system/cpu/cpufreq", "policy*")
        clocks = {policy.name: read_integer(policy / "scaling_cur_freq") for policy in policies}
        return {
            f"cpu_mhz.{name}": None if khz is None else khz / 1000 for name, khz in clocks.items()
        }

    def _zones(self) -> dict[str, Number | None]:
        found: dict[str, Number | None] = {}
        for zone in numbered(self._root / "sys/class/thermal", "thermal_zone*"):
            kind = read_text(zone / "type")
            if not kind:
                continue
            name = f"temperature_celsius.{label(kind.lower().removesuffix('-thermal'))}"
            value = read_integer(zone / "temp")
            off = value is None or value <= _OFF_MILLICELSIUS or name in found
            found[name] = None if off or value is None else value / 1000
        return found

    def _rails(self) -> dict[str, Number | None]:
        found: dict[str, Number | None] = {}
        for rail in find_rails(self._root):
            if rail.name == _UNUSED_RAIL:
                continue
            name = f"power_mw.{label(rail.name)}"
            power = rail.microwatts()
            found[name] = None if power is None or name in found else round(power / 1000)
        return found

    def _first(self, paths: tuple[str, ...]) -> int | None:
        values = (read_integer(self._root / path) for path in paths)
        return next((value for value in values if value is not None), None)


def label(text: str) -> str:
    """Return a text as a reading's label can be."""
    return _NOT_LABEL.sub("_", text).strip("_-")[:64] or "unnamed"
