"""Digests of the checkpoint's files, computed beside the build so that they cost no wall time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING

from edgekit.bundle.digests import file_digest
from edgekit.checkpoint.files import read_errors
from edgekit.contracts.manifest import FileEntry
from edgekit.progress import SILENT, Progress

if TYPE_CHECKING:
    from typing_extensions import Self

_POLL_S = 0.1


def files_as_they_are(files: Sequence[Path]) -> list[list[str | int]]:
    """Return what stands for files' content in resume keys: name, size and time of change."""
    return [[p.name, p.stat().st_size, str(p.stat().st_mtime_ns)] for p in files]


class CheckpointDigests:
    """Hashes files in a background thread; leaving the context stops it early."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files = files
        self._stop = Event()
        self._done_bytes = 0
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
        self._stop.set()
        self._pool.shutdown(wait=True)

    @property
    def remaining_bytes(self) -> int:
        """Bytes that are still to be hashed."""
        total = sum(path.stat().st_size for path in self._files if path.is_file())
        return max(0, total - self._done_bytes)

    def result(self, progress: Progress = SILENT) -> tuple[FileEntry, ...]:
        """Wait for the digests, in the order of the files.

        Args:
            progress: Advanced by the bytes hashed meanwhile.

        Raises:
            CheckpointError: A file cannot be read.
        """
        if self._result is None:
            raise RuntimeError("CheckpointDigests was not entered")
        told, waiting = self._done_bytes, True
        while waiting:
            waiting = bool(wait([self._result], timeout=_POLL_S).not_done)
            done = self._done_bytes
            progress.advance(done - told, "digests of the checkpoint")
            told = done
        return self._result.result()

    def _digest(self, path: Path) -> FileEntry:
        with read_errors(path):
            digest, size = file_digest(path, self._count, self._stop)
        return FileEntry(path.name, size, digest)

    def _count(self, passed_bytes: int) -> None:
        self._done_bytes += passed_bytes
