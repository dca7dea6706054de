"""A worker that kills itself at one step, as a crash there would.

Usage: python killed_worker.py POINT ingest ...   POINT is a key of :data:`POINTS`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from ota.cli.entry import main
from ota.ingest.link import Link
from ota.store import commit

POINTS: dict[str, tuple[Any, str]] = {
    "transaction": (commit, "lock_cursor"),
    "committed": (Link, "publish"),
    "acknowledged": (Link, "acknowledge"),
}
"""Point to what is called there: before batches are written, after the commit, after the devices
have their acknowledgements."""


def die(*_: object) -> None:
    """End at once."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    setattr(*POINTS[sys.argv[1]], die)
    main(sys.argv[2:])
