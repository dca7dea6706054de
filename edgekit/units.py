"""Byte constants and the formatting of sizes, rates and durations for people."""

from __future__ import annotations

MIB = 1024**2


def format_bytes(size_bytes: float) -> str:
    """Format a size with decimal units, as disks and models are sold: ``1.34 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.2f} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """Format a duration: ``0.8 s``, ``42 s``, ``3 min 07 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
