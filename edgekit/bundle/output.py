"""What may stand where a bundle is to be written, and how the new one takes its place.

Only a bundle is ever replaced, only on request, and only if nothing but the bundle's own files
would be lost with it. Writing the new one is ``bundle.writer``'s business.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from edgekit.bundle.layout import (
    BLOB_FOLDER,
    GOLDEN,
    MANIFEST,
    MANIFEST_DIGEST,
    TOKENIZER_FOLDER,
    listed_files,
)
from edgekit.bundle.storage import storage_errors
from edgekit.contracts.canonical import read_limited
from edgekit.contracts.manifest import Manifest
from edgekit.errors import BundleError, StorageError

_LAYOUT = re.compile(
    rf"{re.escape(GOLDEN)}|[^/]+\.onnx|{TOKENIZER_FOLDER}/[^/]+"
    rf"|{BLOB_FOLDER}/[0-9a-f]{{2}}/[0-9a-f]{{64}}"
)
"""Where a bundle's files stand, for one whose manifest cannot be read."""


def require_free(out: Path, *, overwrite: bool) -> None:
    """Refuse an output that stands in the way.

    Args:
        out: Folder a finished bundle is to get.
        overwrite: Whether a bundle there may be replaced.

    Raises:
        StorageError: Something is there and may not be replaced: without ``overwrite``, or because
            it is no bundle or holds files that are not the bundle's.
    """
    with storage_errors(out):
        if not out.exists() and not out.is_symlink():
            return
        if not overwrite:
            bundle = (out / MANIFEST).is_file()
            raise StorageError(
                f"{out} exists already{'' if bundle else ' and is not a bundle'}",
                f"Choose another --out{', or replace it with --overwrite' if bundle else ''}",
            )
        if not (out / MANIFEST).is_file():
            raise StorageError(f"{out} is not a bundle and is not replaced", "Choose another --out")
        foreign = _foreign_file(out)
    if foreign is not None:
        raise StorageError(
            f"{out} holds {foreign}, which is none of its bundle's files, and is not replaced",
            "Move that file away, or choose another --out",
        )


def take_place(work: Path, out: Path) -> None:
    """Rename ``work`` to ``out``; a bundle there is removed once the new one stands.

    A crash between the two renames leaves the old one beside it.
    """
    if not out.exists():
        work.rename(out)
        return
    old = out.parent / f".{out.name}.old"
    _remove(old)
    out.rename(old)
    work.rename(out)
    _remove(old)


def _foreign_file(folder: Path) -> str | None:
    """Return the first file in a bundle's folder that is not the bundle's."""
    own = _listed_files(folder / MANIFEST)
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        known = _LAYOUT.fullmatch(relative) if own is None else relative in own
        if not known and relative not in {MANIFEST, MANIFEST_DIGEST}:
            return relative
    return None


def _listed_files(manifest: Path) -> set[str] | None:
    """Return the paths that a manifest lists; None when it is damaged or of another version."""
    try:
        read = Manifest.from_bytes(read_limited(manifest))
    except BundleError:
        return None
    return set(listed_files(read))


def _remove(folder: Path) -> None:
    """Remove a folder, or the link to one."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
