"""What ``edgekit doctor`` reports, and what it finds of a device's memory.

Reads only, as root or not; it is advice, and was not measured on a Jetson:

- Huge pages: kernel.org, Documentation/admin-guide/mm/transhuge.rst: embedded systems should have
  them inside madvise regions only, so as to waste no memory and only run faster. glibc asks for
  them with ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` (2.35 and later).
- Swap: a Jetson's memory is CPU's and GPU's alike, and what the GPU has is never swapped; zram
  (JetPack's service ``nvzramconfig``) keeps what it swaps in that same memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import EngineError
from edgekit.targets import MEMORY_RESERVE_FRACTION
from edgekit.trt.holding import read_memory
from edgekit.units import format_bytes

_THP = "sys/kernel/mm/transparent_hugepage/enabled"
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: What was looked for.
        state: ``ok``, ``missing`` (a feature is off) or ``problem`` (what the machine is for will
            fail: building, or with ``--device`` running bundles).
        detail: What was found.
        remedy: What to do; empty when nothing is needed.
    """

    what: str
    state: str
    detail: str
    remedy: str = ""


def memory_findings(root: Path = _ROOT) -> list[Finding]:
    """Return advice on a device's memory: what is free, swap, huge pages.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    return [_reserve(root), _swap(root), _huge_pages(root)]


def _reserve(root: Path) -> Finding:
    """Compare what is free with the fifth of all that stays free beside a model."""
    what = "memory for a model"
    try:
        memory = read_memory(root / "proc/meminfo")
    except EngineError:
        return Finding(what, "missing", "/proc/meminfo cannot be read")
    total, available = memory.total_bytes, memory.available_bytes
    left = available - int(total * MEMORY_RESERVE_FRACTION)
    detail = f"{format_bytes(available)} of {format_bytes(total)} available"
    if left <= 0:
        return Finding(
            what,
            "missing",
            f"{detail}: less than the reserve of 20 %",
            "Stop what needs it (sudo systemctl isolate multi-user.target ends the desktop)",
        )
    return Finding(what, "ok", f"{detail}, {format_bytes(left)} for a model after the reserve")


def _swap(root: Path) -> Finding:
    """Look for swap that takes from the very memory it should relieve."""
    what = "swap"
    lines = _text(root / "proc/swaps").splitlines()[1:]
    areas = [(fields[0], int(fields[2]) * 1024) for fields in map(str.split, lines)]
    if not areas:
        return Finding(what, "ok", "none: what does not fit is refused, nothing slows down")
    total = format_bytes(sum(size for _, size in areas))
    if any("zram" in name for name, _ in areas):
        return Finding(
            what,
            "missing",
            f"{total}, of it in zram: compressed in the memory that model and GPU share",
            "For large models: sudo systemctl disable --now nvzramconfig, and swap to NVMe",
        )
    return Finding(
        what,
        "ok",
        f"{total} on disk; a model's pages should not go there: the unit of systemd forbids it",
    )


def _huge_pages(root: Path) -> Finding:
    """Look at the mode of transparent huge pages."""
    what = "transparent huge pages"
    found = re.search(r"\[(\w+)\]", _text(root / _THP))
    if found is None:
        return Finding(what, "missing", f"unknown: /{_THP} cannot be read")
    mode = found[1]
    if mode == "madvise":
        detail = "madvise: on request, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 requests them"
        return Finding(what, "ok", detail)
    why = "takes memory that nobody asked for" if mode == "always" else "costs every read of memory"
    return Finding(
        what, "missing", f"{mode}: {why}", f"echo madvise | sudo tee /{_THP}, at every boot"
    )


def _text(path: Path) -> str:
    """Return a file's text; empty if it cannot be read."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
