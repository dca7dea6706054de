"""A worker that kills or freezes itself at one step, as a crash or a debugger there would.

Usage: python killed_worker.py POINT ingest ...   POINT is a key of :data:`POINTS`, or ``frozen``.
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


def freeze_once() -> None:
    """Have the first transaction stop in the middle, until SIGCONT."""
    holder, name = POINTS["transaction"]
    original = getattr(holder, name)

    def freeze(*arguments: object) -> None:
        setattr(holder, name, original)
        os.kill(os.getpid(), signal.SIGSTOP)
        original(*arguments)

    setattr(holder, name, freeze)


if __name__ == "__main__":
    if sys.argv[1] == "frozen":
        freeze_once()
    else:
        setattr(*POINTS[sys.argv[1]], die)
    main(sys.argv[2:])
