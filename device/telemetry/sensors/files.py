"""Small files of the kernel: a text or an integer, None for whatever else."""

from __future__ import annotations

import re
from pathlib import Path

_INTEGER = re.compile(r"-?\d{1,18}")
_MAX_BYTES = 256 * 1024


def read_text(path: Path) -> str | None:
    """Return a file's text without padding; None if it cannot be read.

    Drivers answer with errors of many kinds (EAGAIN of a sensor that is switched off, EIO, ENODEV
    of a device that just left), which all mean that there is no reading.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace").strip("\0 \n\t")
    except OSError:
        return None


def read_integer(path: Path) -> int | None:
    """Return a file's decimal integer, which may be negative; None if it holds none."""
    text = read_text(path)
    return int(text) if text is not None and _INTEGER.fullmatch(text) else None


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Return the entries of a folder that match, in a steady order; none if it cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
