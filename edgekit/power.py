"""The machine that figures are measured on: a Jetson's power mode and clocks, or what else it is.

Standard library only, and reads only: nothing is started, root is not needed. What cannot be read
is None, never a guess. Paths, alike on JetPack 6.2 (L4T R36) and 7.2 (R39.2) for Orin:

| what | where | source |
|---|---|---|
| board | ``/proc/device-tree/model``; Docker masks it, then the GPU's devfreq says Jetson | |
| power mode | ``/var/lib/nvpmodel/status``: ``pmode:0000``; names in ``/etc/nvpmodel.conf`` | [1] |
| GPU | ``/sys/class/devfreq/17000000.gpu`` (``.ga10b`` until JetPack 5): ``min_freq``, Hz | [2] |
| CPU | ``/sys/devices/system/cpu/cpufreq/policy*/scaling_min_freq``, kHz | [3] |
| memory | ``/sys/kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked``, root only | [3] |
| throttling | ``cur_state`` of the cooling devices whose ``type`` ends in ``-alert`` | [1] |
| over-current | ``/sys/class/hwmon/hwmon*/oc*_event_cnt``, since the boot | [1] |

``jetson_clocks`` pins: it raises the minimum of GPU and CPU to the power mode's maximum and locks
the memory's rate; ``jetson_clocks --show`` prints the latter as ``FreqOverride``.

[1] docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/SD/PlatformPowerAndPerformance/
    JetsonOrinNanoSeriesJetsonOrinNxSeriesAndJetsonAgxOrinSeries.html
[2] github.com/rbonghi/jetson_stats/pull/867: on JetPack 7.2 NVML knows nothing of Orin's GPU, the
    sysfs of ``17000000.gpu`` is whole.
[3] docs.nvidia.com/jetson/archives/r36.5/DeveloperGuide/SD/Clocks.html
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_GPU_CLOCKS = ("17000000.gpu", "17000000.ga10b")
_EMC = "sys/kernel/debug/bpmp/debug/clk/emc"
_MODE_LINE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock's limits and rate in MHz; None where it cannot be read."""

    min_mhz: float | None
    max_mhz: float | None
    current_mhz: float | None

    @property
    def pinned(self) -> bool | None:
        """Whether it can only be at its maximum."""
        if self.min_mhz is None or self.max_mhz is None:
            return None
        return self.min_mhz == self.max_mhz


@dataclass(frozen=True, slots=True)
class Jetson:
    """A Jetson as it stands.

    Attributes:
        board: What the device tree calls it.
        power_mode: Name of nvpmodel's mode in the words of ``edgekit plan`` (``MAXN``, ``30W``).
        power_mode_id: Its number, as ``nvpmodel -m`` takes it.
        fastest_mode_id: Number of the mode without limits.
        gpu: The GPU's clock.
        cpu: One clock a CPU cluster that is on.
        cpu_governor: Governors of those.
        memory_pinned: Whether the memory's rate is locked; only root can read it.
        throttled: Alerts that are raised now.
        over_current_events: Since the boot, of all kinds.
    """

    board: str | None
    power_mode: str | None
    power_mode_id: int | None
    fastest_mode_id: int | None
    gpu: Clock
    cpu: tuple[Clock, ...]
    cpu_governor: str | None
    memory_pinned: bool | None
    throttled: tuple[str, ...]
    over_current_events: int | None

    @property
    def cpu_pinned(self) -> bool | None:
        """Whether every cluster is pinned."""
        pinned = [clock.pinned for clock in self.cpu]
        if False in pinned:
            return False
        return None if not pinned or None in pinned else True

    @property
    def clocks_pinned(self) -> dict[str, bool | None]:
        """Whether each clock is pinned; None is unknown."""
        return {"gpu": self.gpu.pinned, "cpu": self.cpu_pinned, "memory": self.memory_pinned}

    def warnings(self) -> list[str]:
        """Return why a speed measured now is not the board's best, a sentence each."""
        found = []
        pick = f"sudo nvpmodel -m {self.fastest_mode_id or 0}"
        if self.power_mode is None:
            found.append(
                "the power mode is unknown (/var/lib/nvpmodel/status and /etc/nvpmodel.conf cannot "
                "be read), so the speed cannot be compared"
            )
        elif not _is_fastest(self.power_mode):
            found.append(f"the power mode is {self.power_mode}, not MAXN ({pick} sets it)")
        loose = [name for name, pinned in self.clocks_pinned.items() if pinned is False]
        if loose:
            found.append(
                f"clocks are not pinned ({', '.join(loose)}): the speed varies with the load "
                "before it (sudo jetson_clocks pins them)"
            )
        elif self.gpu.pinned is None:
            found.append("whether the clocks are pinned is unknown: no GPU clock can be read")
        if self.throttled:
            found.append(f"the board is throttling ({', '.join(self.throttled)})")
        return found

    def describe(self) -> str:
        """Return it in one line."""
        pinned = "pinned" if self.gpu.pinned and self.cpu_pinned else "not pinned"
        if self.gpu.pinned is None:
            pinned = "unknown"
        mhz = "" if self.gpu.max_mhz is None else f", GPU up to {self.gpu.max_mhz:g} MHz"
        return (
            f"{self.board or 'a Jetson'}, power mode {self.power_mode or 'unknown'}{mhz}, "
            f"clocks {pinned}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as every report's ``machine`` has it."""
        return {
            "kind": "jetson",
            "board": self.board,
            "power_mode": self.power_mode,
            "power_mode_id": self.power_mode_id,
            "clocks_pinned": self.clocks_pinned,
            "gpu": asdict(self.gpu),
            "cpu_governor": self.cpu_governor,
            "throttled": list(self.throttled),
            "over_current_events": self.over_current_events,
        }


@dataclass(frozen=True, slots=True)
class NotJetson:
    """Any other machine.

    Attributes:
        cpu_governor: None where the kernel shows none, as in virtual machines.
        gpu_name: Of the first NVIDIA GPU, where its driver is loaded.
    """

    cpu_governor: str | None
    gpu_name: str | None

    def warnings(self) -> list[str]:
        """Return nothing: what is known here says nothing of speed."""
        return []

    def describe(self) -> str:
        """Return it in one line."""
        facts = [
            f"CPU governor {self.cpu_governor}" if self.cpu_governor else "",
            self.gpu_name or "",
        ]
        return ", ".join(["not a Jetson", *filter(None, facts)])

    def to_dict(self) -> dict[str, Any]:
        """Return it as every report's ``machine`` has it."""
        return {"kind": "other", **asdict(self)}


def read_machine(root: Path = _ROOT) -> Jetson | NotJetson:
    """Read the machine's state; never fails, what cannot be read is None.

    Args:
        root: Where ``proc``, ``sys``, ``etc`` and ``var`` are.
    """
    model = _text(root / "proc/device-tree/model")
    gpu = _gpu_folder(root)
    if "Jetson" not in (model or "") and gpu is None:
        return NotJetson(_governors(root), _nvidia_gpu(root))
    number, name, fastest = _power_mode(root)
    return Jetson(
        board=model,
        power_mode=name,
        power_mode_id=number,
        fastest_mode_id=fastest,
        gpu=Clock(None, None, None) if gpu is None else _clock(gpu, "", 1e6),
        cpu=tuple(_clock(policy, "scaling_", 1e3) for policy in _policies(root)),
        cpu_governor=_governors(root),
        memory_pinned=_flag(root / _EMC / "mrq_rate_locked"),
        throttled=_alerts(root),
        over_current_events=_over_current(root),
    )


def _is_fastest(mode: str) -> bool:
    return mode.startswith("MAXN")


def _power_mode(root: Path) -> tuple[int | None, str | None, int | None]:
    """Return the mode's number and name, and the number of the fastest."""
    status = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    listed = _MODE_LINE.findall(_text(root / "etc/nvpmodel.conf") or "")
    # AGX Orin's file says MODE_30W, Orin NX's 25W; `edgekit plan` says 30W and 25W.
    names = {int(number): name.removeprefix("MODE_") for number, name in listed}
    fastest = next((number for number, name in names.items() if _is_fastest(name)), None)
    if status is None:
        return None, None, fastest
    number = int(status[1])
    return number, names.get(number), fastest


def _gpu_folder(root: Path) -> Path | None:
    folders = (root / "sys/class/devfreq" / name for name in _GPU_CLOCKS)
    return next((folder for folder in folders if folder.is_dir()), None)


def _policies(root: Path) -> list[Path]:
    return sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))


def _clock(folder: Path, prefix: str, per_mhz: float) -> Clock:
    """Read a clock's files, which count Hz or kHz."""
    values = [_number(folder / f"{prefix}{name}_freq") for name in ("min", "max", "cur")]
    return Clock(*(None if value is None else value / per_mhz for value in values))


def _governors(root: Path) -> str | None:
    found = {_text(policy / "scaling_governor") for policy in _policies(root)} - {None}
    return ", ".join(sorted(filter(None, found))) or None


def _alerts(root: Path) -> tuple[str, ...]:
    """Return the raised alerts; fans and governors have states above 0 in good health."""
    raised = []
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = _text(device / "type") or ""
        if kind.endswith("-alert") and (_number(device / "cur_state") or 0) > 0:
            raised.append(kind)
    return tuple(raised)


def _over_current(root: Path) -> int | None:
    counts = [_number(path) for path in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _nvidia_gpu(root: Path) -> str | None:
    """Return the name that NVIDIA's driver for cards gives the first one."""
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", _text(path) or "", re.MULTILINE)
        if found:
            return found[1].strip()
    return None


def _flag(path: Path) -> bool | None:
    value = _number(path)
    return None if value is None else value != 0


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdecimal() else None


def _text(path: Path) -> str | None:
    """Return a file's text without padding (device trees end in a NUL); None if unreadable."""
    try:
        return path.read_text("utf-8", "replace").strip("\0 \n\t")
    except OSError:
        return None
