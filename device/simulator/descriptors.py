"""File descriptors for hundreds of devices in one process.

paho waits for its sockets by ``select``, which takes no descriptor above 1023. So the low ones are
left to sockets: rings, which stay open, are opened while the low ones are taken.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

from edgekit.errors import ConfigError

SELECT_END = 1024
"""FD_SETSIZE."""
_A_DEVICE = 8
"""A ring and its log, a socket, paho's pair, and files that are open for a moment."""
_OTHERS = 64


def allow(devices: int) -> None:
    """Raise this process's limit to what its devices need.

    Raises:
        ConfigError: The system does not let it.
    """
    need = SELECT_END + _A_DEVICE * devices + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= need:
        return
    if hard < need:
        raise ConfigError(
            f"{devices} devices need {need} open files, and a process may have {hard}",
            "Use fewer devices in a process, or raise the limit (ulimit -n)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


@contextlib.contextmanager
def high() -> Iterator[None]:
    """Have what is opened meanwhile get descriptors that ``select`` does not take."""
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < SELECT_END - 1:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for one in taken:
            os.close(one)
