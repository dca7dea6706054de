"""The entry point: an interruption while Python still imports ends quietly, too.

Imports nothing heavy itself; everything else is :mod:`edgekit.cli.main`'s.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130
_JSON = (
    b'{"error": {"kind": "Interrupted", "message": "interrupted", "remedy": "", "exit_code": 130}}'
)


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGINT, _leave)
    from edgekit.cli.main import main as run  # noqa: PLC0415 - what an interruption may fall into

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(signum: int, frame: FrameType | None) -> None:
    """Leave at once: nothing has begun, and an exception inside an import may be swallowed."""
    del signum, frame
    if "--json" in sys.argv[1:]:
        os.write(sys.stdout.fileno(), _JSON + b"\n")
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(_INTERRUPTED)
