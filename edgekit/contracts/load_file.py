"""Whether a server is busy, in a file that the server writes and what works beside it reads.

One word, ``busy`` or ``idle``. A server writes it again at least every ten seconds while it is
busy: one that died busy is not waited for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

STALE_S = 30.0
"""Age in seconds above which a file says nothing any more."""
_BUSY, _IDLE = b"busy\n", b"idle\n"


def write_load(path: Path, *, busy: bool) -> None:
    """Say whether the server is busy; a reader sees the old word or the new one.

    Raises:
        OSError: The file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(_BUSY if busy else _IDLE)
    part.replace(path)


def read_busy(path: Path, now_s: float | None = None) -> bool:
    """Return whether a server says that it is busy.

    A file that is not there, cannot be read or is stale says no.

    Args:
        path: The file.
        now_s: Time since the epoch; None is now.
    """
    try:
        age_s = (time.time() if now_s is None else now_s) - path.stat().st_mtime
        return age_s < STALE_S and path.read_bytes().strip() == _BUSY.strip()
    except OSError:
        return False
