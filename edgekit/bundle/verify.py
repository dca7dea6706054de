"""Checks every byte of a bundle against its manifest, and that nothing else is in the folder."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.layout import MANIFEST, MANIFEST_DIGEST, blob_location
from edgekit.bundle.reader import Bundle, bundle_errors
from edgekit.errors import BundleError, DigestMismatchError
from edgekit.progress import SILENT, Progress

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class DigestReport:
    """What was checked: files and blobs, and their bytes."""

    files: int
    blobs: int
    checked_bytes: int


def verify_digests(
    bundle: Bundle, *, threads: int = 2, progress: Progress = SILENT
) -> DigestReport:
    """Check every digest of a bundle (``open_bundle`` has checked the manifest's own).

    Raises:
        DigestMismatchError: A file's bytes are not those of the manifest.
        BundleError: A file cannot be read, or stands in the folder and not in the manifest.
    """
    files = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    blobs = {blob_location(e.sha256): e.sha256 for e in bundle.manifest.tensors}
    wanted = {**files, **blobs}
    _refuse_strays(bundle.path, wanted)

    def check(relative: str) -> int:
        digest, size = _digest(bundle.path / relative)
        if digest != wanted[relative]:
            raise DigestMismatchError(relative, wanted[relative], digest)
        progress.advance(size, relative)
        return size

    with ThreadPoolExecutor(threads, thread_name_prefix="edgekit-verify") as pool:
        checked = sum(pool.map(check, sorted(wanted)))
    return DigestReport(len(files), len(blobs), checked)


def _refuse_strays(root: Path, wanted: dict[str, str]) -> None:
    known = {*wanted, MANIFEST, MANIFEST_DIGEST}
    with bundle_errors(root):
        found = sorted(root.rglob("*"))
    for path in found:
        relative = path.relative_to(root).as_posix()
        if not path.is_dir() and relative not in known:
            raise BundleError(
                f"{relative} is in the bundle but not in its manifest", "Remove the file"
            )


def _digest(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with bundle_errors(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
