"""Files of a checkpoint folder: found inside it, and read with errors that name them.

A checkpoint is somebody else's folder: each file of it that is read or copied is looked up here, so
that none can be a link to a file of the machine it is built on. Links into the blobs of a Hugging
Face cache are allowed, since its snapshots are made of such links.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import CheckpointError

_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_SHOWN_CHARS = 120


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about ``path`` into a CheckpointError that names it."""
    try:
        yield
    except OSError as error:
        remedy = "Change its owner or mode" if error.errno in {errno.EACCES, errno.EPERM} else ""
        raise CheckpointError(
            f"cannot read {shown(path)}: {error.strerror or error}", remedy
        ) from error


def shown(path: Path | str) -> str:
    """Return a path for a message; the middle of a very long one is left out."""
    text = str(path)
    if len(text) <= _SHOWN_CHARS:
        return text
    return f"{text[: _SHOWN_CHARS // 2]}...{text[-_SHOWN_CHARS // 2 :]}"


def is_folder(path: Path) -> bool:
    """Whether there is a folder at ``path``.

    Raises:
        CheckpointError: The system does not let one look.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_present(path: Path) -> bool:
    """Whether anything is at ``path``.

    Raises:
        CheckpointError: The system does not let one look.
    """
    return _mode(path) is not None


def contained_file(folder: Path, name: str) -> Path | None:
    """Return a file of a folder; None when it is not there.

    Raises:
        CheckpointError: It is a link to somewhere else, or cannot be looked at.
    """
    path = folder / name
    mode = _mode(path)
    if mode is None or not stat.S_ISREG(mode):
        return None
    with read_errors(path):
        root, target = folder.resolve(), path.resolve()
    # <cache>/models--owner--name/snapshots/<revision>/<file> links to ../../blobs/<digest>.
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (target.is_relative_to(root) or target.is_relative_to(blobs)):
        raise CheckpointError(
            f"{path} is a link that leaves its folder",
            "Put the file itself there: a checkpoint is read from its own folder only",
        )
    return path


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        CheckpointError: It cannot be read.
    """
    with read_errors(path):
        return path.read_bytes()


def _mode(path: Path) -> int | None:
    """Return the mode of what ``path`` leads to; None when there is nothing."""
    with read_errors(path):
        try:
            return path.stat().st_mode
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
