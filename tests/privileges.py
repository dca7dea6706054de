"""Tests of permissions also where the tests run as root, whom permissions do not stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drop root's privileges for a while, so that permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def reachable(path: Path) -> Path:
    """Let others into the temporary folders above ``path``, which pytest makes private."""
    for folder in path.parents:
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):  # noqa: S108
            folder.chmod(folder.stat().st_mode | 0o055)
    return path
