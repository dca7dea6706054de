"""File operations whose failures name the path and the remedy, and that survive power loss."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import StorageError
from edgekit.units import format_bytes

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def storage_errors(path: Path, needed_bytes: int = 0, *, option: str = "--out") -> Iterator[None]:
    """Turn an OSError about ``path`` into a StorageError that says what to do.

    Args:
        path: What is written.
        needed_bytes: Named where there is no space; 0 for unknown.
        option: What the user chose the path with.
    """
    try:
        yield
    except OSError as error:
        needs = f" ({format_bytes(needed_bytes)} needed)" if needed_bytes else ""
        if error.errno in _NO_SPACE:
            raise StorageError(
                f"no space left to write {path}{needs}",
                "Free space and run the same command again: it takes up where it stopped",
            ) from error
        if error.errno in _NO_PERMISSION:
            raise StorageError(
                f"no permission to write {path}", f"Choose another {option}, or change its owner"
            ) from error
        remedy = f"Choose a shorter {option}" if error.errno == errno.ENAMETOOLONG else ""
        raise StorageError(f"cannot write {path}: {error.strerror or error}", remedy) from error


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start a write that the file system of ``folder`` cannot hold.

    Raises:
        StorageError: Less than ``needed_bytes`` are free.
    """
    with storage_errors(folder):
        stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if free < needed_bytes:
        raise StorageError(
            f"{folder} has {format_bytes(free)} free, "
            f"the bundle needs {format_bytes(needed_bytes)}",
            "Free space or choose another --out",
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file so that it is either whole or not there, on disk when this returns."""
    with storage_errors(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
