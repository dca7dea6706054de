"""Writes a bundle into a work folder and renames it into place when it is whole.

The work folder ``.<name>.partial`` stands beside the output. Every blob written is noted in a
journal under a key of the caller's; an interrupted build that runs again takes noted blobs as they
are. The folder stays only if that can happen: after an interruption or a failed write, with
something noted. Nothing that is written here depends on time, host or thread count.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from edgekit.bundle.digests import file_digest
from edgekit.bundle.layout import (
    BLOB_FOLDER,
    MANIFEST,
    MANIFEST_DIGEST,
    blob_location,
    listed_files,
)
from edgekit.bundle.output import require_free, take_place
from edgekit.bundle.storage import storage_errors, sync_folder, write_atomic
from edgekit.contracts.manifest import Dtype, FileEntry, Manifest, Role, TensorEntry, check_path
from edgekit.errors import BuildInterrupted, BundleError, StorageError

if TYPE_CHECKING:
    from typing_extensions import Self

JOURNAL = "journal.jsonl"
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Noted:
    """Finished blobs as the journal keeps them.

    Attributes:
        entries: Their manifest entries.
        facts: Numbers measured on the way, such as a weight's error.
    """

    entries: tuple[TensorEntry, ...]
    facts: dict[str, float] = field(default_factory=dict)


class BundleWriter:
    """One bundle being written; blobs may be added from several threads.

    Args:
        out: Folder the finished bundle gets.
        overwrite: Replace an existing bundle at ``out``.

    Raises:
        StorageError: ``out`` exists, or its parent cannot be written, or another build of the
            same bundle runs.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        self.out = out.absolute()
        self.work = self.out.parent / f".{self.out.name}.partial"
        self._overwrite = overwrite
        require_free(self.out, overwrite=overwrite)
        with storage_errors(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._noted = _read_journal(self.work / JOURNAL)
        self._resumable = bool(self._noted)
        with storage_errors(self.work):
            self._journal = (self.work / JOURNAL).open("a", encoding="utf-8")
            self._journal.write("\n")  # a torn last line must not swallow the next
        self._noting = threading.Lock()
        self._files: dict[str, FileEntry] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock, and remove the work folder unless a next try can go on from it.

        Raises:
            BuildInterrupted: In place of a KeyboardInterrupt, when it can.
        """
        with contextlib.suppress(OSError):  # what a full disk did not take, note() has reported
            self._journal.close()
        failed = isinstance(error, Exception) and not isinstance(error, StorageError)
        if failed or (error is not None and not self._resumable):
            shutil.rmtree(self.work, ignore_errors=True)
        self._lock.close()
        if isinstance(error, KeyboardInterrupt) and self._resumable:
            raise BuildInterrupted from error

    @property
    def stored_bytes(self) -> int:
        """Bytes of the blobs in the work folder, those of earlier tries included."""
        with storage_errors(self.work):
            blobs = (self.work / BLOB_FOLDER).glob("*/*")
            return sum(path.stat().st_size for path in blobs)

    def resume(self, key: str) -> Noted | None:
        """Return what an earlier try noted under ``key``, if its blobs are still whole."""
        noted = self._noted.get(key)
        for entry in noted.entries if noted else ():
            path = self.work / blob_location(entry.sha256)
            if not path.is_file() or file_digest(path)[0] != entry.sha256:
                return None
        return noted

    def note(self, key: str, noted: Noted) -> None:
        """Record finished blobs under ``key``, for a later try."""
        with self._noting, storage_errors(self.work / JOURNAL):
            self._journal.write(json.dumps({"key": key, **asdict(noted)}) + "\n")
            self._journal.flush()
            self._resumable = True

    def add_tensor(
        self,
        name: str,
        role: Role,
        dtype: Dtype,
        shape: tuple[int, ...],
        data: Iterable[Buffer],
        scheme: str | None = None,
    ) -> TensorEntry:
        """Store a tensor's bytes, given in chunks, as a blob named by its digest.

        Equal content is stored once. The chunks are hashed as they are written, never copied.
        """
        digest, size = hashlib.sha256(), 0
        with storage_errors(self.work):
            handle, temporary = tempfile.mkstemp(dir=self.work, prefix=".blob-")
            try:
                with os.fdopen(handle, "wb", buffering=0) as file:
                    for chunk in data:
                        view = memoryview(chunk).cast("B")
                        digest.update(view)
                        size += _write_all(file, view)
                path = self.work / blob_location(digest.hexdigest())
                path.parent.mkdir(parents=True, exist_ok=True)
                Path(temporary).chmod(0o644)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        return TensorEntry(name, role, dtype, shape, size, digest.hexdigest(), scheme)

    def add_file(self, path: str, data: bytes) -> FileEntry:
        """Store a plain file at a path relative to the bundle."""
        check_path(path)
        write_atomic(self.work / path, data)
        entry = FileEntry(path, len(data), hashlib.sha256(data).hexdigest())
        self._files[path] = entry
        return entry

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Return the plain files so far, sorted by path."""
        return tuple(self._files[path] for path in sorted(self._files))

    def finish(self, manifest: Manifest) -> Path:
        """Write the manifest, make everything durable, and rename the folder into place.

        Raises:
            BundleError: The manifest names a blob or file that was not written.
            StorageError: Something has come to stand at the output meanwhile.
        """
        require_free(self.out, overwrite=self._overwrite)
        self._remove_strays(manifest)
        data = manifest.to_bytes()
        write_atomic(self.work / MANIFEST, data)
        digest = f"{hashlib.sha256(data).hexdigest()}\n"
        write_atomic(self.work / MANIFEST_DIGEST, digest.encode("ascii"))
        with storage_errors(self.out):
            os.sync()
            require_free(self.out, overwrite=self._overwrite)  # a sync may take minutes
            take_place(self.work, self.out)
            sync_folder(self.out.parent)
        return self.out

    def _remove_strays(self, manifest: Manifest) -> None:
        """Leave only what the manifest lists: earlier tries may have written more."""
        wanted = set(listed_files(manifest))
        for path in sorted(self.work.rglob("*"), reverse=True):
            relative = path.relative_to(self.work).as_posix()
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif relative not in wanted:
                path.unlink()
            else:
                wanted.remove(relative)
        if wanted:
            raise BundleError(f"the bundle lacks {min(wanted)}, which its manifest lists")

    def _take_lock(self) -> IO[str]:
        path = self.work / ".lock"
        with storage_errors(path):
            lock = path.open("w", encoding="utf-8")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise StorageError(
                    f"another build of {self.out} is running", "Wait for it, or stop it"
                ) from None
        return lock


def _write_all(file: IO[bytes], view: memoryview) -> int:
    done = 0
    while done < len(view):
        done += file.write(view[done : done + (1 << 26)])
    return done


def _read_journal(path: Path) -> dict[str, Noted]:
    """Read the journal, less the lines that a crash tore."""
    noted: dict[str, Noted] = {}
    if not path.is_file():
        return noted
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            entries = tuple(
                TensorEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in row["entries"]
            )
        except (json.JSONDecodeError, KeyError, TypeError, BundleError):
            continue
        noted[row["key"]] = Noted(entries, row["facts"])
    return noted
