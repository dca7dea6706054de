"""Checks every byte of a bundle against its manifest, and that nothing else is in the folder.

Files are hashed side by side: hashlib lets other threads run while it hashes, at some 1.5 GB/s a
core with SHA instructions. What uses a bundle calls :func:`check_digests` first, so that damage is
named here rather than answered with nonsense.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.layout import MANIFEST, MANIFEST_DIGEST, listed_files
from edgekit.bundle.reader import Bundle, bundle_errors
from edgekit.errors import BundleError, DigestMismatchError
from edgekit.progress import SILENT, Progress

_CHUNK_BYTES = 1 << 20
"""Read at a time: it stays in a core's cache between the read and the hash."""


@dataclass(frozen=True, slots=True)
class DigestReport:
    """What was checked: files and blobs, and their bytes."""

    files: int
    blobs: int
    checked_bytes: int


def verify_digests(
    bundle: Bundle, *, threads: int = 2, progress: Progress = SILENT
) -> DigestReport:
    """Check every digest of a bundle, and that nothing else stands in its folder.

    Raises:
        DigestMismatchError: A file's bytes are not those of the manifest.
        BundleError: A file cannot be read, or stands in the folder but not in the manifest.
    """
    _refuse_strays(bundle.path, listed_files(bundle.manifest))
    return check_digests(bundle, threads=threads, progress=progress)


def check_digests(bundle: Bundle, *, threads: int = 2, progress: Progress = SILENT) -> DigestReport:
    """Check every digest of a bundle (``open_bundle`` has checked the manifest's own).

    Args:
        bundle: An opened bundle.
        threads: Files hashed at once.
        progress: Told about a stage ``digests`` and the bytes that pass.

    Raises:
        DigestMismatchError: A file's bytes are not those of the manifest.
        BundleError: A file cannot be read.
    """
    listed = listed_files(bundle.manifest)
    total_bytes = sum(entry.size_bytes for entry in listed.values())
    progress.start("digests", total_bytes)
    # The largest first: a large one taken last would leave the other threads idle.
    order = sorted(listed, key=lambda name: (-listed[name].size_bytes, name))
    paths = {name: bundle.path / name for name in order}
    with bundle_errors(bundle.path):
        for name, digest in hash_files(paths, threads=threads, progress=progress):
            if digest != listed[name].sha256:
                raise DigestMismatchError(name, listed[name].sha256, digest)
    blobs = len({entry.sha256 for entry in bundle.manifest.tensors})
    report = DigestReport(len(bundle.manifest.files), blobs, total_bytes)
    progress.finish(f"{report.files} files and {report.blobs} blobs are whole")
    return report


def hash_files(
    paths: Mapping[str, Path], *, threads: int = 2, progress: Progress = SILENT
) -> Iterator[tuple[str, str]]:
    """Yield each file's name and sha256 (hex) in the order given, hashed by several threads.

    Leaving the iteration early stops the threads.

    Args:
        paths: Files by the name to report them by.
        threads: Files hashed at once.
        progress: Advanced by the bytes that pass, from any of the threads.

    Raises:
        OSError: A file cannot be read.
    """
    stopped = False

    def digest(name: str) -> str:
        result, buffer = hashlib.sha256(), bytearray(_CHUNK_BYTES)
        view = memoryview(buffer)
        with paths[name].open("rb", buffering=0) as file:
            while not stopped and (count := file.readinto(buffer)):
                result.update(view[:count])
                progress.advance(count, name)
        return result.hexdigest()

    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="edgekit-digest")
    try:
        yield from zip(paths, pool.map(digest, paths), strict=True)
    finally:
        stopped = True
        pool.shutdown(cancel_futures=True)


def _refuse_strays(root: Path, listed: Collection[str]) -> None:
    known = {*listed, MANIFEST, MANIFEST_DIGEST}
    with bundle_errors(root):
        found = sorted(root.rglob("*"))
    for path in found:
        relative = path.relative_to(root).as_posix()
        if not path.is_dir() and relative not in known:
            raise BundleError(
                f"{relative} is in the bundle but not in its manifest", "Remove the file"
            )
