"""Memory, CPU, network and disks of the host, from ``/proc``.

Formats: man 5 proc; ``Documentation/admin-guide/iostats.rst`` of Linux for the disks, whose sectors
are 512 bytes whatever the disk's own are.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from device.telemetry.sensors.files import read_text
from edgekit.contracts.series import Number, Values

_ROOT = Path("/")
_DISK = re.compile(r"(?:nvme\d+n\d+|mmcblk\d+|sd[a-z]+|vd[a-z]+)")
_SECTOR_BYTES = 512
_KIB = 1024
_DIGITS = re.compile(r"\d{1,18}")


class Proc:
    """Reads what ``/proc`` shows; the CPU's load is of the time since the last reading.

    Args:
        root: Where ``proc`` is.
    """

    name = "proc"

    def __init__(self, root: Path = _ROOT) -> None:
        self._proc = root / "proc"
        self._cpu: tuple[int, int] | None = None

    def read(self, now_s: float) -> Values:
        """Return the readings; what a file does not tell is None."""
        del now_s
        last, self._cpu = self._cpu, parse_stat(read_text(self._proc / "stat") or "")
        return {
            **parse_meminfo(read_text(self._proc / "meminfo") or ""),
            "cpu_load_percent": _load(last, self._cpu),
            **parse_snmp(read_text(self._proc / "net/snmp") or ""),
            **parse_diskstats(read_text(self._proc / "diskstats") or ""),
            "uptime_s": parse_uptime(read_text(self._proc / "uptime") or ""),
        }


def parse_meminfo(text: str) -> dict[str, Number | None]:
    """Return memory and swap of ``/proc/meminfo``."""
    found = dict(re.findall(r"^(\w+): +(\d{1,15}) kB$", text, re.MULTILINE))

    def size(name: str) -> int | None:
        return int(found[name]) * _KIB if name in found else None

    total, available = size("MemTotal"), size("MemAvailable")
    swap, free = size("SwapTotal"), size("SwapFree")
    ratio = None
    if total and available is not None and available <= total:
        ratio = round(1 - available / total, 4)
    return {
        "memory_total_bytes": total,
        "memory_available_bytes": available,
        "memory_used_ratio": ratio,
        "swap_total_bytes": swap,
        "swap_used_bytes": None if swap is None or free is None else max(swap - free, 0),
    }


def parse_stat(text: str) -> tuple[int, int] | None:
    """Return the ticks that all CPUs were busy, and all ticks, of ``/proc/stat``.

    Guests' ticks are in user's already, and waiting for disks is idle.
    """
    fields = text.partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu" or not all(map(_DIGITS.fullmatch, fields[1:9])):
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait


def parse_snmp(text: str) -> dict[str, Number | None]:
    """Return the host's TCP and UDP counters of ``/proc/net/snmp``.

    Each protocol has a line of names and one of numbers; kernels add columns.
    """
    tables: dict[str, dict[str, int]] = {}
    lines = text.splitlines()
    for names, numbers in itertools.pairwise(lines):
        keys, values = names.split(), numbers.split()
        same = len(keys) == len(values) > 1 and keys[0] == values[0]
        if same and not keys[1].lstrip("-").isdigit():
            pairs = zip(keys[1:], values[1:], strict=True)
            tables[keys[0]] = {key: int(v) for key, v in pairs if _DIGITS.fullmatch(v)}
    tcp, udp = tables.get("Tcp:", {}), tables.get("Udp:", {})
    return {
        "tcp_segments_sent_total": tcp.get("OutSegs"),
        "tcp_segments_retransmitted_total": tcp.get("RetransSegs"),
        "udp_datagrams_sent_total": udp.get("OutDatagrams"),
    }


def parse_diskstats(text: str) -> dict[str, Number | None]:
    """Return bytes read and written by whole disks of ``/proc/diskstats``."""
    found: dict[str, Number | None] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 14 or not _DISK.fullmatch(fields[2]):
            continue
        if _DIGITS.fullmatch(fields[5]) and _DIGITS.fullmatch(fields[9]):
            found[f"disk_read_bytes_total.{fields[2]}"] = int(fields[5]) * _SECTOR_BYTES
            found[f"disk_written_bytes_total.{fields[2]}"] = int(fields[9]) * _SECTOR_BYTES
    return found


def parse_uptime(text: str) -> int | None:
    """Return whole seconds since the boot of ``/proc/uptime``."""
    match = re.fullmatch(r"(\d{1,12})\.\d\d \d+\.\d\d", text)
    return int(match[1]) if match else None


def _load(last: tuple[int, int] | None, now: tuple[int, int] | None) -> float | None:
    """Return the busy share in percent; None of one reading, or of no time."""
    if last is None or now is None:
        return None
    busy, ticks = now[0] - last[0], now[1] - last[1]
    return round(100 * busy / ticks, 1) if ticks > 0 and 0 <= busy <= ticks else None
