"""Opens a bundle: manifest parsed and validated, files and blobs present with their sizes.

Light on purpose (standard library and NumPy): the device uses it too. Digests are checked by
``bundle.verify``, or for one tensor by :meth:`Bundle.read_tensor` with ``check=True``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.layout import MANIFEST, MANIFEST_DIGEST, blob_location, listed_files
from edgekit.contracts.canonical import MAX_DOCUMENT_BYTES, parse_document
from edgekit.contracts.manifest import GraphEntry, Manifest, TensorEntry, blob_bytes
from edgekit.errors import BundleError, DigestMismatchError

_DTYPES: dict[str, Any] = {
    "int4": np.uint8,  # two codes a byte, low nibble first
    "int8": np.int8,
    "float16": np.float16,
    "float32": np.float32,
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: Its folder.
        manifest: Its parsed manifest.
        digest: sha256 of ``manifest.json``, hex.
    """

    path: Path
    manifest: Manifest
    digest: str

    def graph(self, purpose: str, dialect: str | None = None) -> GraphEntry:
        """Return the graph for ``target`` or ``host``; a target graph serves a missing host one.

        Args:
            purpose: Which of the two.
            dialect: Only a graph of this one; None is whichever the bundle lists first.

        Raises:
            BundleError: There is none.
        """
        for wanted in (purpose, "target"):
            for entry in self.manifest.graphs:
                if entry.purpose == wanted and dialect in {None, entry.dialect}:
                    return entry
        raise BundleError(
            f"{self.path} has no graph" + (f" of dialect {dialect}" if dialect else "")
        )

    def tensor(self, name: str) -> TensorEntry:
        """Return a tensor's entry by name."""
        for entry in self.manifest.tensors:
            if entry.name == name:
                return entry
        raise BundleError(f"{self.path} has no tensor {name}")

    def read_tensor(self, entry: TensorEntry, *, check: bool = False) -> npt.NDArray[Any]:
        """Map a tensor's bytes; see :func:`map_blob`.

        Raises:
            BundleError: The blob cannot be read.
            DigestMismatchError: ``check`` is set and the bytes are not those of the manifest.
        """
        data = map_blob(self.path, entry)
        if check:
            digest = hashlib.sha256(data.view(np.uint8).data).hexdigest()
            if digest != entry.sha256:
                raise DigestMismatchError(blob_location(entry.sha256), entry.sha256, digest)
        return data

    def golden(self) -> dict[str, Any]:
        """Return the golden sequences."""
        path: str = self.manifest.golden["path"]
        with bundle_errors(self.path):
            data = (self.path / path).read_bytes()
        return parse_document(data, path)

    @property
    def total_bytes(self) -> int:
        """Bytes of every file: blobs once, files, manifest and its digest."""
        files = sum(entry.size_bytes for entry in self.manifest.files)
        return blob_bytes(self.manifest.tensors) + files + len(self.manifest.to_bytes()) + 65


def map_blob(root: Path, entry: TensorEntry) -> npt.NDArray[Any]:
    """Map a tensor's bytes: its shape, or for int4 the shape with the last axis halved.

    Args:
        root: Folder above the blobs: a bundle, or one being written.
        entry: The tensor.

    Raises:
        BundleError: The blob cannot be read.
    """
    shape = list(entry.shape)
    if entry.dtype == "int4":
        shape[-1] //= 2
    path = root / blob_location(entry.sha256)
    with bundle_errors(path):
        return np.memmap(path, dtype=_DTYPES[entry.dtype], mode="r", shape=tuple(shape))


@contextlib.contextmanager
def bundle_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about a bundle at ``path`` into a BundleError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Change its owner or mode" if isinstance(error, PermissionError) else ""
        if error.errno == errno.ENAMETOOLONG:
            raise BundleError(f"{str(path)[:60]}... is no path: {reason}") from error
        raise BundleError(f"cannot read {error.filename or path}: {reason}", remedy) from error


def is_bundle(path: Path) -> bool:
    """Whether a folder looks like a bundle.

    Raises:
        BundleError: The system does not let one look.
    """
    with bundle_errors(path):
        return (path / MANIFEST).is_file()


def open_bundle(path: Path) -> Bundle:
    """Open a bundle.

    Raises:
        BundleError: No bundle there, a damaged or unknown manifest, or a file that is missing
            or has the wrong size.
    """
    if not is_bundle(path):
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}", "Make one with `edgekit build`"
        )
    with bundle_errors(path):
        if (path / MANIFEST).stat().st_size > MAX_DOCUMENT_BYTES:
            raise BundleError(f"{path / MANIFEST} is larger than {MAX_DOCUMENT_BYTES} bytes")
        data = (path / MANIFEST).read_bytes()
        recorded = (path / MANIFEST_DIGEST).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if recorded != f"{digest}\n".encode("ascii"):
        wanted = recorded[:64].decode("ascii", "replace")
        raise DigestMismatchError(MANIFEST, wanted, digest)
    bundle = Bundle(path, Manifest.from_bytes(data), digest)
    with bundle_errors(path):
        for entry in listed_files(bundle.manifest).values():
            _check_size(path, entry.path, entry.size_bytes)
    return bundle


def _check_size(root: Path, relative: str, size_bytes: int) -> None:
    path = root / relative
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{relative} is missing from {root}", "Fetch or build the bundle again")
    got = path.stat().st_size
    if got != size_bytes:
        raise BundleError(
            f"{relative} has {got} bytes, the manifest says {size_bytes}",
            "Fetch or build the bundle again",
        )
