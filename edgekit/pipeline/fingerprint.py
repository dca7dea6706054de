"""Digests of the checkpoint's files, computed beside the build so that they cost no wall time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgekit.contracts.manifest import FileEntry
from edgekit.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self

_CHUNK_BYTES = 1 << 22


def files_as_they_are(files: Sequence[Path]) -> list[list[str | int]]:
    """Return what stands for files' content in resume keys: name, size and time of change."""
    return [[p.name, p.stat().st_size, str(p.stat().st_mtime_ns)] for p in files]


class CheckpointDigests:
    """Hashes files in a background thread; leaving the context stops it early."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files = files
        self._stop = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edgekit-digest")
        self._result: Future[tuple[FileEntry, ...]] | None = None

    def __enter__(self) -> Self:
        self._result = self._pool.submit(lambda: tuple(self._digest(path) for path in self._files))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        self._pool.shutdown(wait=True)

    def result(self) -> tuple[FileEntry, ...]:
        """Wait for the digests, in the order of the files.

        Raises:
            CheckpointError: A file cannot be read.
        """
        if self._result is None:
            raise RuntimeError("CheckpointDigests was not entered")
        return self._result.result()

    def _digest(self, path: Path) -> FileEntry:
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                while not self._stop and (chunk := file.read(_CHUNK_BYTES)):
                    digest.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        return FileEntry(path.name, size, digest.hexdigest())
