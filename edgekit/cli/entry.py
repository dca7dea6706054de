"""The entry point: an interruption while Python still imports ends quietly, too.

Imports nothing but what every interpreter has loaded when it starts (not even ``__future__``, a
file of its own), so that next to no time passes before Ctrl-C is taken care of. Everything else is
:mod:`edgekit.cli.main`'s.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_INTERRUPTED = 130
_JSON = (
    b'{"error": {"kind": "Interrupted", "message": "interrupted", "remedy": "", "exit_code": 130}}'
)


def main() -> None:
    """Run the command line and exit."""
    try:
        import signal  # noqa: PLC0415 - a Python file that imports others

        signal.signal(signal.SIGINT, _leave)
    except KeyboardInterrupt:
        _leave()
    from edgekit.cli.main import main as run  # noqa: PLC0415 - what an interruption may fall into

    try:
        run()
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)  # pressed again while the first was being explained
    finally:
        # What is left is the interpreter's own clearing up: killed in it, it prints nothing.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _leave(*_: object) -> "NoReturn":
    """Leave at once: nothing has begun, and an exception inside an import may be swallowed."""
    if "--json" in sys.argv[1:]:
        os.write(sys.stdout.fileno(), _JSON + b"\n")
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(_INTERRUPTED)
