"""Checks every byte of a bundle against its manifest, and that nothing else is in the folder.

What uses a bundle calls :func:`check_digests` first, so that damage is named here rather than
answered with nonsense.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.digests import hash_files
from edgekit.bundle.layout import MANIFEST, MANIFEST_DIGEST, listed_files
from edgekit.bundle.reader import Bundle, bundle_errors
from edgekit.errors import BundleError, DigestMismatchError
from edgekit.progress import SILENT, Progress


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
